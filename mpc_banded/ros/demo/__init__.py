# SPDX-License-Identifier: Apache-2.0
"""The demo: node and simulator as processes of their own, judged by their messages alone."""
