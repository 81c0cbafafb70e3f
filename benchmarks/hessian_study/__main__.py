# SPDX-License-Identifier: Apache-2.0
"""The study of banded Hessians: measures every part and fills docs/banded_hessian.md.

``python -m benchmarks.hessian_study`` takes some minutes; ``--quick`` takes seconds for small
sizes and prints the figures instead. Names of parts select some of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.hessian_study import growth, recoveries, routes
from benchmarks.pages import DOCS, ROOT, places, provenance, update
from benchmarks.timing import settle

PARTS = {
    "recoveries": recoveries,
    "routes": routes,
    "growth": growth,
}
PAGE = DOCS / "banded_hessian.md"


def measure(part: str, quick: bool, images: Path) -> dict[str, str]:
    """Figures of a part by their names on the page; its plots go to a folder."""
    module = PARTS[part]
    figures = module.measure(quick)
    module.plot(figures, images)
    values = {f"{part}.{name}": value for name, value in module.values(figures).items()}
    return values | {f"{part}.made": provenance("torch", "numpy", "scipy")}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hessian_study", description=__doc__
    )
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="small sizes; print the figures")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: parts are {', '.join(PARTS)}")
    settle()
    values = {} if options.quick else places(PAGE.read_text(encoding="utf-8"))
    for part in options.parts or PARTS:
        print(f"{part} ...", flush=True)
        images = ROOT / "build" / "hessian_study" if options.quick else DOCS / "images"
        values |= measure(part, options.quick, images)
    if options.quick:
        print(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        update(PAGE, values)


if __name__ == "__main__":
    main()
