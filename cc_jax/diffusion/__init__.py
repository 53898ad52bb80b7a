# SPDX-License-Identifier: Apache-2.0
"""Noise schedules, objectives and samplers."""
