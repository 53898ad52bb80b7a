# SPDX-License-Identifier: Apache-2.0
"""Arrays in, floats out."""
