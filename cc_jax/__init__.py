# SPDX-License-Identifier: Apache-2.0
"""Open text-to-image models from Creative-Commons images, in JAX."""
