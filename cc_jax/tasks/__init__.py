# SPDX-License-Identifier: Apache-2.0
"""What is trained: pairs of pure functions."""
