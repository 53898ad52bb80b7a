# SPDX-License-Identifier: Apache-2.0
"""Networks, their presets and their names on the hub."""
