# SPDX-License-Identifier: Apache-2.0
"""A torch function of a few numbers becomes C, and a library in a private cache."""
