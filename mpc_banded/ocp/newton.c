/* SPDX-License-Identifier: Apache-2.0
 *
 * The Newton step of newton.py in C: all of it that does not depend on the functions of the
 * problem. layout.py writes macros with the sizes in front of this file:
 *
 *   N, NX, NU       stages, states, inputs
 *   BAND            rows of the band storage
 *   COSTS           named costs
 *   C_...           offset of each of the scalars in their array, units among them
 *   O_...           offset of each part of a Newton system in its array
 *   S_...           offset of each part of a step in its array
 *   SWEEPS          multiplier sweeps with one factor
 *
 * Exported names begin with newton_: the C library has an advance() of its own, which would be
 * called in place of ours.
 *
 * The factorisation works in windows of z: stage k has (x_k, u_k, x_{k+1}), after the stages before
 * it have eliminated all unknowns ahead of x_k. Columns are padded to whole vectors, so loops over
 * rows have no remainder.
 */

#define BLOCK (NU + NX)
#define WIDTH (BLOCK + NX)
#ifndef LANES
#define LANES 4
#endif
#define PADDED ((WIDTH + LANES - 1) / LANES)
#define COLUMN (PADDED * LANES)

#if LANES == 4
typedef double lanes
    __attribute__((vector_size(LANES * sizeof(double)), aligned(sizeof(double)), may_alias));
static inline double total(lanes sum) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }
#else
typedef double lanes;
static inline double total(lanes sum) { return sum; }
#endif

/* Workspace: columns of the factor and inverses of its diagonal, stage by stage; a window; shifted
 * multipliers; a right-hand side with x_0 in front, which becomes the step, and room for what the
 * last window reads beyond its end. */
#define W_FACTOR 0
#define W_INVERSE (W_FACTOR + (N + 1) * BLOCK * COLUMN)
#define W_WINDOW (W_INVERSE + (N + 1) * BLOCK)
#define W_SHIFTED (W_WINDOW + WIDTH * COLUMN)
#define W_STEP (W_SHIFTED + N * NX)
#define W_SIZE (W_STEP + NX + N * BLOCK + COLUMN)

const int workspace_size = W_SIZE;

#pragma GCC push_options
#pragma GCC optimize("O3")

static inline void subtract(
    double *restrict to, const double *restrict from, double factor, int first)
{
    lanes *t = (lanes *)to;
    const lanes *f = (const lanes *)from;
    for (int i = first / LANES; i < PADDED; ++i)
        t[i] -= factor * f[i];
}

static inline void add_four(
    double *restrict to, const double *restrict from, const double *restrict factors, int first)
{
    lanes *t = (lanes *)to;
    const lanes *f = (const lanes *)from;
    for (int i = first / LANES; i < PADDED; ++i)
        t[i] += factors[0] * f[i] + factors[1] * f[PADDED + i] + factors[2] * f[2 * PADDED + i]
            + factors[3] * f[3 * PADDED + i];
}

static inline double dot(const double *a, const double *b, int first)
{
    const lanes *x = (const lanes *)a, *y = (const lanes *)b;
    lanes sum = x[first / LANES] * y[first / LANES];
    for (int i = first / LANES + 1; i < PADDED; ++i)
        sum += x[i] * y[i];
    return total(sum);
}

/* Adds J' rho J to the band, stage by stage, for systems whose Hessian was found by probes. */
static void add_squared_jacobian(double *out, const double *rho)
{
    enum { GROUPS = (NX + 3) / 4 };
    static const lanes zero = {0};
    for (int k = 0; k < N; ++k) {
        const double *jacobian = out + O_DEFECT_JACOBIAN + k * NX * WIDTH;
        double *bands = out + O_BANDS + (k * BLOCK - NX) * BAND;
        double *rows = out + O_SCRATCH;
        memset(rows, 0, GROUPS * 4 * COLUMN * sizeof *rows);
        for (int row = 0; row < NX; ++row)
            memcpy(rows + row * COLUMN, jacobian + row * WIDTH, WIDTH * sizeof *rows);
        for (int j = 0; j < WIDTH; ++j) {
            lanes sum[PADDED];
            for (int i = j / LANES; i < PADDED; ++i)
                sum[i] = zero;
            for (int group = 0; group < GROUPS; ++group) {
                const double *four = rows + group * 4 * COLUMN;
                double factors[4];
                int any = 0;
                for (int row = 0; row < 4; ++row) {
                    const int at = group * 4 + row;
                    factors[row] = at < NX ? rho[at] * four[row * COLUMN + j] : 0;
                    if (factors[row] != 0)
                        any = 1;
                }
                if (any)
                    add_four((double *)sum, four, factors, j);
            }
            const int last = j + BAND < WIDTH ? j + BAND : WIDTH;
            for (int i = j; i < last; ++i)
                bands[j * BAND + i - j] += ((double *)sum)[i];
        }
    }
}

/* Computes the norms of a Newton system, once all sections have added to it: summary() of
 * newton.py. */
static void summarise(double *out, const double *scalars)
{
    const double *units = scalars + C_VARIABLES;
    double *gradient = out + O_GRADIENT;
    double residual = 0, size = 0, defect = 0, cost = 0;
    for (int row = 0; row < NX; ++row) /* x_0 is no unknown */
        memset(out + O_DEFECT_JACOBIAN + row * WIDTH, 0, NX * sizeof *out);
    for (int k = 0, i = 0; k < N; ++k)
        for (int j = 0; j < BLOCK; ++i, ++j) {
            const double of_cost = out[O_COST_GRADIENT + i],
                         of_barrier = out[O_BARRIER_GRADIENT + i];
            gradient[i] = of_cost + of_barrier;
            const double all = gradient[i] + out[O_DYNAMICS_GRADIENT + i];
            residual = maximum(fabs(all) * units[j], residual);
            size = maximum(maximum(fabs(of_cost), fabs(of_barrier)) * units[j], size);
        }
    for (int k = 0, i = 0; k < N; ++k)
        for (int row = 0; row < NX; ++i, ++row)
            defect = maximum(fabs(out[O_DEFECTS + i]) / units[NU + row], defect);
    for (int i = 0; i < COSTS; ++i)
        cost += out[O_COSTS + i];
    lanes nothing = {0};
    const double *bands = out + O_BANDS, *end = bands + N * BLOCK * BAND;
    double rest = 0;
    for (; bands + LANES <= end; bands += LANES)
        nothing += 0.0 * *(const lanes *)bands;
    for (; bands < end; ++bands)
        rest += 0.0 * *bands;
    double *summary = out + O_SUMMARY;
    summary[0] = cost;
    summary[1] = residual / (scalars[C_COST] + size);
    summary[2] = defect;
    summary[3] = total(nothing) + rest; /* NaN if anything in the band is not finite */
}

/* Factors the first columns of a window; returns the first one whose pivot fails, or -1. */
static inline int eliminate(double *window, double *inverse, int columns, int rows)
{
    for (int first = 0; first < columns; first += 4) {
        const int end = first + 4 < columns ? first + 4 : columns;
        for (int j = first; j < end; ++j) {
            double *column = window + j * COLUMN;
            const double pivot = column[j];
            if (!(pivot > 0 && pivot < INFINITY))
                return j;
            inverse[j] = 1.0 / sqrt(pivot);
            for (int i = 0; i < COLUMN; ++i)
                column[i] = i > j ? column[i] * inverse[j] : 0;
            for (int t = j + 1; t < end; ++t)
                subtract(window + t * COLUMN, column, column[t], t);
        }
        if (end - first == 4)
            for (int t = end; t < rows; ++t) {
                const double *panel = window + first * COLUMN;
                const double factors[4] = {-panel[t], -panel[COLUMN + t], -panel[2 * COLUMN + t],
                    -panel[3 * COLUMN + t]};
                add_four(window + t * COLUMN, panel, factors, t);
            }
        else
            for (int j = first; j < end; ++j)
                for (int t = end; t < rows; ++t)
                    subtract(window + t * COLUMN, window + j * COLUMN, window[j * COLUMN + t], t);
    }
    return -1;
}

/* Computes the Cholesky factor of the shifted Newton matrix, stage by stage; failed becomes the
 * unknown at which the matrix is not positive definite, or -1. */
void newton_factor(const double *system, const double *scalars, double *workspace, double *failed)
{
    double *window = workspace + W_WINDOW;
    memset(window, 0, WIDTH * COLUMN * sizeof *window);
    for (int j = 0; j < NX; ++j) /* x_0 is known: an identity */
        window[j * COLUMN + j] = 1;
    for (int k = 0; k <= N; ++k) {
        const int start = k * BLOCK - NX, columns = k < N ? BLOCK : NX, rows = k < N ? WIDTH : NX;
        for (int j = k ? 0 : NX; j < rows; ++j) {
            const double *bands = system + O_BANDS + (start + j) * BAND;
            /* What remains of x_k comes from the window before. */
            const int first = j < NX ? NX : j, last = j + BAND < rows ? j + BAND : rows;
            double *column = window + j * COLUMN;
            for (int i = first; i < last; ++i)
                column[i] = bands[i - j];
            for (int i = last > first ? last : first; i < COLUMN; ++i)
                column[i] = 0;
            if (j >= NX)
                column[j] += scalars[C_SHIFT] * scalars[C_CURVATURES + (j - NX) % BLOCK];
        }
        double *inverse = workspace + W_INVERSE + k * BLOCK;
        const int first = k < N ? eliminate(window, inverse, BLOCK, WIDTH)
                                : eliminate(window, inverse, NX, NX);
        if (first >= 0) {
            *failed = start + first;
            return;
        }
        memcpy(workspace + W_FACTOR + k * BLOCK * COLUMN, window, columns * COLUMN * sizeof *window);
        for (int j = 0; k < N && j < NX; ++j)
            for (int i = j; i < NX; ++i)
                window[j * COLUMN + i] = window[(BLOCK + j) * COLUMN + BLOCK + i];
    }
    *failed = -1;
}

/* Solves with the factor, in place. x has x_0 in front and room for what a window reads beyond. */
static void solve(const double *workspace, double *x)
{
    for (int k = 0; k <= N; ++k) {
        const double *columns = workspace + W_FACTOR + k * BLOCK * COLUMN;
        const double *inverse = workspace + W_INVERSE + k * BLOCK;
        double *y = x + k * BLOCK;
        for (int j = 0; j < (k < N ? BLOCK : NX); ++j) {
            y[j] *= inverse[j];
            subtract(y, columns + j * COLUMN, y[j], j);
        }
    }
    for (int k = N; k >= 0; --k) {
        const double *columns = workspace + W_FACTOR + k * BLOCK * COLUMN;
        const double *inverse = workspace + W_INVERSE + k * BLOCK;
        double *y = x + k * BLOCK;
        for (int j = (k < N ? BLOCK : NX) - 1; j >= 0; --j)
            y[j] = (y[j] - dot(columns + j * COLUMN, y, j)) * inverse[j];
    }
}

/* Runs the multiplier sweeps of newton.py with the factor; writes step, multipliers and slopes. */
void newton_sweep(
    const double *system, const double *multipliers, const double *scalars, double *workspace,
    double *restrict out)
{
    const double *rho = scalars + C_PENALTIES, *units = scalars + C_VARIABLES + NU;
    const double *weights = scalars + C_OF_DEFECTS, accuracy = scalars[C_ACCURACY];
    const double *defects = system + O_DEFECTS, *gradient = system + O_GRADIENT;
    double *shifted = workspace + W_SHIFTED, *padded = workspace + W_STEP;
    double *reached = out + S_MULTIPLIERS, *change = out + S_DEFECT_CHANGE;
    for (int k = 0, i = 0; k < N; ++k)
        for (int row = 0; row < NX; ++i, ++row)
            shifted[i] = multipliers[i] + rho[row] * defects[i];
    for (int left = SWEEPS; left > 0; --left) {
        memset(padded, 0, (NX + N * BLOCK + COLUMN) * sizeof *padded);
        for (int i = 0; i < N * BLOCK; ++i)
            padded[NX + i] = -gradient[i];
        for (int k = 0; k < N; ++k)
            for (int row = 0; row < NX; ++row) {
                const double *jacobian = system + O_DEFECT_JACOBIAN + (k * NX + row) * WIDTH;
                const double of_row = shifted[k * NX + row];
                for (int i = 0; i < WIDTH; ++i)
                    padded[k * BLOCK + i] -= of_row * jacobian[i];
            }
        solve(workspace, padded);
        int accurate = 1;
        for (int k = 0; k < N; ++k)
            for (int row = 0; row < NX; ++row) {
                const int at = k * NX + row;
                const double *jacobian = system + O_DEFECT_JACOBIAN + at * WIDTH;
                lanes sum = {0};
                double rest = 0;
                int i = 0;
                for (; i + LANES <= WIDTH; i += LANES)
                    sum += *(const lanes *)(jacobian + i) * *(lanes *)(padded + k * BLOCK + i);
                for (; i < WIDTH; ++i)
                    rest += jacobian[i] * padded[k * BLOCK + i];
                change[at] = total(sum) + rest;
                reached[at] = shifted[at] + rho[row] * change[at];
                if (!(fabs(defects[at] + change[at]) <= accuracy * units[row]))
                    accurate = 0;
            }
        if (accurate)
            break;
        for (int k = 0, i = 0; left > 1 && k < N; ++k)
            for (int row = 0; row < NX; ++i, ++row)
                shifted[i] = reached[i] + rho[row] * defects[i];
    }
    memcpy(out + S_Z, padded + NX, N * BLOCK * sizeof *out);
    double slope = 0, bend = 0, dynamics = 0, squared = 0;
    for (int i = 0; i < N * BLOCK; ++i)
        slope += gradient[i] * padded[NX + i];
    for (int k = 0, i = 0; k < N; ++k)
        for (int row = 0; row < NX; ++i, ++row) {
            slope += reached[i] * change[i];
            bend += weights[row] * defects[i] * change[i];
            dynamics += reached[i] * defects[i];
            squared += weights[row] * defects[i] * defects[i];
        }
    double *summary = out + S_SUMMARY;
    summary[0] = slope;
    summary[1] = bend;
    summary[2] = dynamics;
    summary[3] = 0.5 * squared;
}

/* Computes the longest step length and the duals after the step: Barrier.advance at each stage. */
void newton_bounds(const double *system, const double *scalars, const double *step, double *out);

/* Computes a step; NaN in the system is reported like a matrix that is not positive definite. */
void newton_step(
    const double *system, const double *multipliers, const double *scalars, double *workspace,
    double *out)
{
    newton_factor(system, scalars, workspace, out + S_SUMMARY + 4);
    if (out[S_SUMMARY + 4] >= 0)
        return;
    newton_sweep(system, multipliers, scalars, workspace, out);
    newton_bounds(system, scalars, out + S_Z, out + S_LONGEST);
}

#pragma GCC pop_options
