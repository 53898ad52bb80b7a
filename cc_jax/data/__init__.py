# SPDX-License-Identifier: Apache-2.0
"""Licences, images, captions and the dataset folder."""
