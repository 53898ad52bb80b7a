# SPDX-License-Identifier: Apache-2.0
"""Arrays, files and devices; knows no image and no model."""
