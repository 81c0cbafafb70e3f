# SPDX-License-Identifier: Apache-2.0
"""``python -m mpc_banded``."""

import sys

from mpc_banded.cli import main

sys.exit(main())
