# SPDX-License-Identifier: Apache-2.0
"""The Creative Commons table: what each licence permits and requires.

Facts: creativecommons/cc-legal-tools-data, config/cc-legal-tools.csv (kinds,
versions, jurisdiction ports, SPDX ids), and Flickr's flickr.photos.licenses
.getInfo (numeric codes 0 to 16). The table is closed: what is not in it is not
recognised, and what is not recognised is refused.

Left out on purpose, and so refused as `licence_unknown`: the retired Sampling,
Sampling Plus and Developing Nations licences, whose permissions depend on how
much of a work is used or in which country, which no row can say; and names
without a version ("CC BY"), which do not say which licence was granted. The
exceptions are CC0 and the public domain tools, of which there is one version
each, and Flickr's own wording ("Attribution License"), which meant 2.0.
"""

from collections.abc import Collection, Iterable
import dataclasses
import functools
import re
from typing import NamedTuple
import urllib.parse


@dataclasses.dataclass(frozen=True)
class Licence:
  """What one licence permits (first two flags) and requires (last two)."""

  id: str
  """SPDX's identifier, or one in its manner: `CC-BY-SA-3.0-DE`."""
  url: str
  """The canonical address of the deed."""
  commercial: bool
  """The work may be used commercially."""
  derivatives: bool
  """Adaptations of the work may be shared."""
  attribution: bool
  """The author must be named."""
  share_alike: bool
  """Adaptations must carry the same licence."""


COLLECTIONS = ("commercial", "non-commercial")
"""What a dataset may be made for; neither holds a no-derivatives licence."""

REASONS = (
  "licence_missing",  # neither a URL nor a name
  "licence_unknown",  # something is stated, but it is not in the table
  "licence_conflict",  # URL and name state different licences
  "licence_no_derivatives",  # ND, in any collection
  "licence_non_commercial",  # NC, in the commercial collection
  "licence_not_allowed",  # none of those that a rule of one's own names
)
"""Every reason for which `gate` refuses."""


class _Statement(NamedTuple):
  """The parts of a licence that a text states; "" where it is silent."""

  kind: str
  version: str = ""
  port: str = ""


_SITE = "https://creativecommons.org"
_UNITS = ("by", "nc", "nd", "sa")
_KINDS = ("by", "by-nc", "by-nc-nd", "by-nc-sa", "by-nd", "by-sa")
_KINDS_WITHOUT_BY = ("nc", "nc-nd", "nc-sa", "nd", "sa")  # version 1.0 only
# The jurisdiction ports of each version; the same for all kinds with BY.
_PORTS = {
  "1.0": "fi il nl",
  "2.0": "at au be br ca cl de es fr hr it jp kr nl pl tw uk za",
  "2.1": "au ca es jp",
  "2.5": "ar au bg br ca ch cn co dk es hr hu il in it mk mt mx my nl pe pl pt "
  "scotland se si tw za",
  "3.0": "am at au az br ca ch cl cn cr cz de ec ee eg es fr ge gr gt hk hr ie "
  "igo it lu nl no nz ph pl pr pt ro rs sg th tw ug us ve vn za",
  "4.0": "",
}
_PORTS_WITHOUT_BY = "fi nl"
_UNPORTED = ("1.0", "2.0", "2.5", "3.0", "4.0")  # 2.1 exists as ports only


def _entry(kind: str, version: str, port: str) -> tuple[_Statement, Licence]:
  units = kind.split("-")
  # Version 1.0 wrote ND before NC in its addresses.
  first = version == "1.0" and kind.endswith("nc-nd")
  path = kind.replace("nc-nd", "nd-nc") if first else kind
  return _Statement(kind, version, port), Licence(
    id="-".join(["CC", *units, version, *([port] if port else [])]).upper(),
    url="/".join([_SITE, "licenses", path, version, *([port] if port else [])])
    + "/",
    commercial="nc" not in units,
    derivatives="nd" not in units,
    attribution="by" in units,
    share_alike="sa" in units,
  )


def _free(id: str, url: str) -> Licence:
  return Licence(id, url, True, True, False, False)


def _make_table() -> dict[_Statement, Licence]:
  places = [
    (kind, version, port)
    for kind in _KINDS
    for version, ports in _PORTS.items()
    for port in [*([""] if version in _UNPORTED else []), *ports.split()]
  ] + [
    (kind, "1.0", port)
    for kind in _KINDS_WITHOUT_BY
    for port in ["", *_PORTS_WITHOUT_BY.split()]
  ]
  free = {
    _Statement("zero", "1.0"): _free(
      "CC0-1.0", f"{_SITE}/publicdomain/zero/1.0/"
    ),
    _Statement("mark", "1.0"): _free(
      "CC-PDM-1.0", f"{_SITE}/publicdomain/mark/1.0/"
    ),
    _Statement("certification", "1.0", "us"): _free(
      "CC-PDDC", f"{_SITE}/publicdomain/certification/1.0/us/"
    ),
    _Statement("no-known"): _free(
      "LicenseRef-No-Known-Copyright", "https://www.flickr.com/commons/usage/"
    ),
    _Statement("us-government"): _free(
      "LicenseRef-US-Government-Work", "https://www.usa.gov/government-works"
    ),
  }
  return dict(_entry(*place) for place in places) | free


_TABLE = _make_table()
_STATEMENTS = {licence: statement for statement, licence in _TABLE.items()}

LICENCES = tuple(_TABLE.values())
"""Every licence that is recognised."""

_RESERVED = _Statement("reserved")

FLICKR = {
  "0": "All Rights Reserved",
  "1": "CC-BY-NC-SA-2.0",
  "2": "CC-BY-NC-2.0",
  "3": "CC-BY-NC-ND-2.0",
  "4": "CC-BY-2.0",
  "5": "CC-BY-SA-2.0",
  "6": "CC-BY-ND-2.0",
  "7": "LicenseRef-No-Known-Copyright",
  "8": "LicenseRef-US-Government-Work",
  "9": "CC0-1.0",
  "10": "CC-PDM-1.0",
  "11": "CC-BY-4.0",
  "12": "CC-BY-SA-4.0",
  "13": "CC-BY-ND-4.0",
  "14": "CC-BY-NC-4.0",
  "15": "CC-BY-NC-SA-4.0",
  "16": "CC-BY-NC-ND-4.0",
}
"""Flickr's numeric codes; 0 grants nothing."""

# Names of what has one version, with everything but letters, digits and dots
# turned to spaces.
_NAMES = {
  r"(cc0|cc zero)( 1\.0)?( universal)?( public domain dedication)?"
  r"|public domain dedication": _Statement("zero", "1.0"),
  r"public domain|((cc )?pdm|(cc )?public domain mark)( 1\.0)?( universal)?": (
    _Statement("mark", "1.0")
  ),
  r"cc pddc": _Statement("certification", "1.0", "us"),
  r"no known copyright restrictions|licenseref no known copyright": (
    _Statement("no-known")
  ),
  r"(united states|us|u\.s\.) government work"
  r"|licenseref us government work": _Statement("us-government"),
  r"all rights reserved|(c|copyright) all rights reserved": _RESERVED,
}
_WORDS = {
  r"creative\s*commons": "cc",
  r"attribution": "by",
  r"non[\s-]*commercial": "nc",
  r"no[\s-]*deriv(ative|ate)?s?([\s-]*works?)?": "nd",
  r"share[\s-]*alike": "sa",
  # What a name may say besides and that changes nothing.
  r"\b((public\s+)?licen[cs]e|international|generic|unported|version)\b": "",
}
_UNIT = "(?:by|nc|nd|sa)"
_NAME = re.compile(
  rf"(cc-)?({_UNIT}(?:-{_UNIT})*)(?:-v?(\d\.\d)(?:-([a-z]+))?)?"
)
_ADDRESS = re.compile(
  r"/(licenses|publicdomain)/([a-z-]+)/(\d\.\d)(?:/([a-z]+))??"
  r"(?:/(?:(?:deed|legalcode)(?:[._-][a-z_.-]+)?|rdf))?/?"
)
_HOSTS = ("creativecommons.org", "www.creativecommons.org")
_OTHER_ADDRESSES = {
  "creativecommons.org/licenses/publicdomain": (
    _Statement("certification", "1.0", "us")
  ),
  "flickr.com/commons/usage": _Statement("no-known"),
  "usa.gov/copyright.shtml": _Statement("us-government"),
  "usa.gov/government-works": _Statement("us-government"),
  "usa.gov/government-copyright": _Statement("us-government"),
}


def _kind(units: str) -> str:
  """`by-nd-nc` -> `by-nc-nd`; repeated units stay, and so are not found."""
  return "-".join(sorted(units.split("-"), key=_UNITS.index))


def _read_url(text: str) -> _Statement | None:
  try:
    parts = urllib.parse.urlsplit(text if "://" in text else f"https://{text}")
  except ValueError:  # a broken IPv6 host, for one
    return None
  if parts.scheme not in ("http", "https"):
    return None
  path = re.sub("/+", "/", parts.path)
  known = _OTHER_ADDRESSES.get(
    parts.netloc.removeprefix("www.") + path.rstrip("/")
  )
  if known or parts.netloc not in _HOSTS:
    return known
  match = _ADDRESS.fullmatch(path)
  if not match:
    return None
  folder, kind, version, port = match.groups(default="")
  if folder == "licenses":
    if not re.fullmatch(f"{_UNIT}(-{_UNIT})*", kind):
      return None
    kind = _kind(kind)
  elif kind not in ("zero", "mark", "certification"):
    return None
  return _Statement(kind, version, port)


def _read_name(text: str) -> _Statement | None:
  # "Attribution 4.0 International (CC BY 4.0)" says it twice; both must agree.
  twice = re.fullmatch(r"([^()]+)\(([^()]+)\)([^()]*)", text)
  if twice:
    before, inside, after = twice.groups()
    outside = _read_name(f"{before} {after}")
    inside = _read_name(inside)
    return outside if outside == inside else None
  plain = re.sub(r"[^a-z0-9.]+", " ", text).strip()
  for pattern, statement in _NAMES.items():
    if re.fullmatch(pattern, plain):
      return statement
  for pattern, short in _WORDS.items():
    text = re.sub(pattern, f" {short} ", text)
  match = _NAME.fullmatch("-".join(re.findall(r"[^\s_,-]+", text)))
  if not match:
    return None
  cc, units, version, port = match.groups(default="")
  if not cc and "by" not in units:  # "SA 1.0" alone says too little
    return None
  return _Statement(_kind(units), version, port)


@functools.lru_cache(maxsize=4096)
def _read(text: str) -> _Statement | None:
  text = urllib.parse.unquote_plus(text).strip().lower()
  if text in FLICKR:
    return _read_name(FLICKR[text].lower())
  if re.match(r"[a-z]+:|[a-z0-9.-]+\.(org|gov|com)(/|$)", text):
    return _read_url(text)
  return _read_name(text)


# Before its codes 11 to 16 Flickr offered version 2.0 only, under these names.
_FLICKR_NAME = re.compile(
  r"attribution(-(noncommercial|noderivs|sharealike))* licen[cs]e"
)


def parse(text: str) -> Licence | None:
  """Finds the licence that a text states.

  Args:
    text: an id (`CC-BY-SA-4.0`, any case), a name (`CC BY 4.0`,
      `Attribution-ShareAlike License`, `CC0 1.0 Universal`), a URL (deed or
      legal code, in any language, percent- or plus-encoded or not) or a Flickr
      code (`"4"`).

  Returns:
    The licence, or None when the text states none that is in the table.
  """
  statement = _read(text)
  if statement is None:
    return None
  plain = urllib.parse.unquote_plus(text).strip().lower()
  if _FLICKR_NAME.fullmatch(plain):
    statement = statement._replace(version="2.0")
  return _TABLE.get(statement)


def rule(names: Iterable[str]) -> frozenset[str]:
  """The ids of the licences that a rule of one's own names.

  Args:
    names: ids (`CC-BY-2.0`, `CC0-1.0`), or families (`CC-BY`): all versions
      and ports of one kind, and not of `CC-BY-NC`.

  Raises:
    ValueError: for a name that is neither, and for a no-derivatives licence.
  """
  allowed = []
  for name in names:
    found = [x for x in LICENCES if name.upper() in (x.id.upper(), _family(x))]
    if not found:
      raise ValueError(
        f"catalogue.allow names {name!r}; expected an id, such as CC-BY-2.0, "
        f"or one of {', '.join(sorted({_family(x) for x in LICENCES}))}"
      )
    if not all(licence.derivatives for licence in found):
      raise ValueError(
        f"catalogue.allow names {name!r}, which forbids derivatives, as a "
        "model may be; no collection holds it"
      )
    allowed += [licence.id for licence in found]
  return frozenset(allowed)


def _family(licence: Licence) -> str:
  return re.sub(r"-\d\.\d(-[A-Z]+)?$", "", licence.id).upper()


def gate(
  collection: str,
  *,
  licence_url: str = "",
  licence_name: str = "",
  allow: Collection[str] = (),
) -> Licence | str:
  """Decides whether a work may enter a collection.

  The URL of the row decides; a name beside it may be silent or say less
  (`Attribution License` beside `.../by/2.0/`), but not something else. A name
  that cannot be read leaves the decision to the URL.

  Args:
    collection: one of `COLLECTIONS`.
    licence_url: what the row states as its licence's address.
    licence_name: what the row states as its licence's name, id or Flickr code.
    allow: ids from `rule`; if there are any, they decide and not the
      collection.

  Returns:
    The licence when the work may be held, else one of `REASONS`.

  Raises:
    ValueError: when there is no such collection.
  """
  if collection not in COLLECTIONS:
    raise ValueError(
      f"unknown collection {collection!r}; data/licences.py has "
      + ", ".join(COLLECTIONS)
    )
  url, name = _stated(licence_url), _stated(licence_name)
  if not url and not name:
    return "licence_missing"
  licence = parse(url or name)
  if licence is None:
    return "licence_unknown"
  if url and name and not _agrees(_read(name), licence):
    return "licence_conflict"
  if not licence.derivatives:
    return "licence_no_derivatives"
  if allow:
    return licence if licence.id in allow else "licence_not_allowed"
  if collection == "commercial" and not licence.commercial:
    return "licence_non_commercial"
  return licence


def _stated(text: str) -> str:
  """The text without what tables write where they have nothing."""
  text = text.strip()
  return "" if text.lower() in ("none", "null", "nan", "n/a", "\\n") else text


def _agrees(statement: _Statement | None, licence: Licence) -> bool:
  return statement is None or all(
    said in ("", meant)
    for said, meant in zip(statement, _STATEMENTS[licence], strict=True)
  )
