# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes (controller, simulator, recorder) and the demo; no other package knows ROS."""
