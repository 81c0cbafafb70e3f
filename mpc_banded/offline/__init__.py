# SPDX-License-Identifier: Apache-2.0
"""Recordings and reports, without ROS."""
