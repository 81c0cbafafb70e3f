# SPDX-License-Identifier: Apache-2.0
"""From messages to commands, without ROS and without a clock of its own."""
