# SPDX-License-Identifier: Apache-2.0
"""From inputs a person has to outputs a person wants."""
