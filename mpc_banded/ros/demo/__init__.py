# SPDX-License-Identifier: Apache-2.0
"""The demo: runs node and simulator in separate processes, and judges them by their messages."""
