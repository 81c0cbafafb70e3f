# SPDX-License-Identifier: Apache-2.0
"""Turns a torch function of a few numbers into C, and C into a library in a private cache."""
