# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes, controller, simulator and recorder, and their demo; nothing else knows ROS."""
