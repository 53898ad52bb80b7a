# SPDX-License-Identifier: Apache-2.0
"""One file a command; stages do not know each other."""
