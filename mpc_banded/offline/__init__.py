# SPDX-License-Identifier: Apache-2.0
"""Work on recordings, without ROS."""
