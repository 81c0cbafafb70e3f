# SPDX-License-Identifier: Apache-2.0
"""The only part of the package that knows ROS 2."""
