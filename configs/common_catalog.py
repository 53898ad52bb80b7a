# SPDX-License-Identifier: Apache-2.0
"""CommonCatalog from the hub: the argument is a part of it, by licence.

14.6 million images are in "by", 7.9 million in "by-sa", 10.5 million in
"by-nc", 24 million in "by-nc-sa" (as the hub's collection page counts them).
Each row's own licence decides all the same. A file of Parquet, of up to 3.4 GB,
is downloaded at a time, and is a shard.

  cc-jax catalogue --config=configs/common_catalog.py:by --workdir=runs/by
"""

import base
from ml_collections import ConfigDict

COLLECTIONS = {
  "by": "commercial",
  "by-sa": "commercial",
  "by-nc": "non-commercial",
  "by-nc-sa": "non-commercial",
}


def get_config(arg: str = "by") -> ConfigDict:
  if arg not in COLLECTIONS:
    raise ValueError(
      "configs/common_catalog.py has by, by-sa, by-nc and by-nc-sa, got "
      f"{arg!r}"
    )
  config = base.get_config()
  config.name = f"common_catalog_{arg.replace('-', '_')}"
  hub = "hf://datasets/common-canvas/commoncatalog-cc-"
  config.catalogue.source = hub + arg
  config.catalogue.format = "parquet"
  config.catalogue.collection = COLLECTIONS[arg]
  config.catalogue.url_encoded = True
  config.catalogue.columns.author = "unickname"
  config.caption.clean = True
  return config
