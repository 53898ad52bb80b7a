# SPDX-License-Identifier: Apache-2.0
"""Every licence in every form, and what only looks like one."""

import itertools
import urllib.parse

import pytest

from cc_jax.data import licences

KINDS = ("by", "by-sa", "by-nd", "by-nc", "by-nc-sa", "by-nc-nd")
# kind: commercial, derivatives, attribution, share_alike; by hand, from the
# deeds, so that the rules that derive them have something to answer to.
PERMITS = {
  "by": (True, True, True, False),
  "by-sa": (True, True, True, True),
  "by-nd": (True, False, True, False),
  "by-nc": (False, True, True, False),
  "by-nc-sa": (False, True, True, True),
  "by-nc-nd": (False, False, True, False),
  "sa": (True, True, False, True),
  "nd": (True, False, False, False),
  "nc": (False, True, False, False),
  "nc-sa": (False, True, False, True),
  "nc-nd": (False, False, False, False),
}
WORDS = {
  "by": "Attribution",
  "nc": "NonCommercial",
  "nd": "NoDerivs",
  "sa": "ShareAlike",
}
SUFFIX = {"3.0": "Unported", "4.0": "International"}
TAILS = """deed deed.en deed.zh_Hant deed.pt-br legalcode legalcode.fr
  legalcode.txt rdf""".split()
FREE = {
  "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
  "CC-PDM-1.0": "https://creativecommons.org/publicdomain/mark/1.0/",
  "CC-PDDC": "https://creativecommons.org/publicdomain/certification/1.0/us/",
  "LicenseRef-No-Known-Copyright": "https://www.flickr.com/commons/usage/",
  "LicenseRef-US-Government-Work": "https://www.usa.gov/government-works",
}


def same(forms, id):
  for form in forms:
    licence = licences.parse(form)
    assert licence is not None, form
    assert licence.id == id, form


def address_forms(url):
  """The spellings under which one address is met."""
  rest = url.removeprefix("https://")
  for scheme, www in itertools.product(("https://", "http://"), ("", "www.")):
    plain = scheme + www + rest
    yield from (plain, plain.rstrip("/"), plain.upper())
    for tail in TAILS:
      yield plain + tail
    yield plain + "?ref=openverse"
    yield plain + "deed.en#top"
  yield rest
  yield f"  {url}\n"
  yield urllib.parse.quote(url, safe="")
  yield urllib.parse.quote_plus(url)


def name_forms(kind, version, port):
  units = kind.split("-")
  place = f" {port}" if port else ""
  for cc in "cc-", "CC ", "Creative Commons ":
    yield f"{cc}{kind} {version}{place}"
    yield f"{cc}{kind.upper()} {version}{place.upper()}"
    yield f"{cc}{kind}-{version}{place.replace(' ', '-')}"
    yield f"{cc}{' '.join(units)} v{version}{place}"
  if "by" in units:
    yield f"{kind} {version}{place}"
    yield f"{kind.upper()}-{version}{place}"
  words = [WORDS[unit] for unit in units]
  yield f"Creative Commons {'-'.join(words)} {version}{place}"
  yield f"Creative Commons {' - '.join(words)} {version} License{place}"
  spelled = (
    " ".join(words).replace("NonC", "Non-C").replace("ShareA", "Share A")
  )
  yield f"Creative Commons {spelled} {version}{place}"
  derivatives = "-".join(words).replace("NoDerivs", "NoDerivatives")
  yield f"Creative Commons {derivatives} {version}{place}"
  yield f"creative+commons+{'-'.join(words)}+{version}{place.replace(' ', '+')}"
  if not port and version in SUFFIX and "by" in units:
    long = f"{'-'.join(words)} {version} {SUFFIX[version]}"
    yield long
    yield f"Creative Commons {long} (CC {kind.upper()} {version})"


def rows():
  """(kind, version, port) of every licence that has them, from its address."""
  for licence in licences.LICENCES:
    path = urllib.parse.urlsplit(licence.url).path.strip("/").split("/")
    if path[0] == "licenses":
      kind = path[1].replace("nd-nc", "nc-nd")
      yield kind, path[2], path[3] if len(path) > 3 else "", licence


@pytest.mark.parametrize("kind", PERMITS)
def test_every_licence_is_found_in_every_form(kind):
  found = [row for row in rows() if row[0] == kind]
  assert found
  for _, version, port, licence in found:
    assert licences.parse(licence.id) is licence
    same([licence.id.lower(), licence.id.replace("-", " ")], licence.id)
    same(address_forms(licence.url), licence.id)
    same(name_forms(kind, version, port), licence.id)
    permits = (licence.commercial, licence.derivatives)
    requires = (licence.attribution, licence.share_alike)
    assert permits + requires == PERMITS[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", ["1.0", "2.0", "2.5", "3.0", "4.0"])
def test_the_six_licences_have_all_unported_versions(kind, version):
  licence = licences.parse(f"CC-{kind}-{version}")
  assert licence.id == f"CC-{kind.upper()}-{version}"
  order = "by-nd-nc" if (kind, version) == ("by-nc-nd", "1.0") else kind
  assert licence.url == (
    f"https://creativecommons.org/licenses/{order}/{version}/"
  )


@pytest.mark.parametrize("kind", KINDS)
def test_ports_are_licences_of_their_own(kind):
  counts = {}
  for _, version, port, licence in (r for r in rows() if r[0] == kind):
    if port:
      counts[version] = counts.get(version, 0) + 1
      assert licence.id == f"CC-{kind.upper()}-{version}-{port.upper()}"
  # Counted in creativecommons/cc-legal-tools-data, config/cc-legal-tools.csv.
  assert counts == {"1.0": 3, "2.0": 18, "2.1": 4, "2.5": 28, "3.0": 43}


@pytest.mark.parametrize(
  ("url", "id"),
  [
    ("http://creativecommons.org/licenses/by/2.0/", "CC-BY-2.0"),
    ("http://creativecommons.org/licenses/by-sa/3.0/de/", "CC-BY-SA-3.0-DE"),
    ("creativecommons.org/licenses/by/2.1/jp/deed.ja", "CC-BY-2.1-JP"),
    ("https://creativecommons.org/licenses/by/3.0/igo/", "CC-BY-3.0-IGO"),
    ("https://creativecommons.org/licenses/by/3.0/us/", "CC-BY-3.0-US"),
    ("https://creativecommons.org/licenses/by/2.0/de", "CC-BY-2.0-DE"),
    (
      "https://creativecommons.org/licenses/by/2.5/scotland/",
      "CC-BY-2.5-SCOTLAND",
    ),
    ("https://creativecommons.org/licenses/nd-nc/1.0/", "CC-NC-ND-1.0"),
    ("https://creativecommons.org/licenses/by-nc-nd/1.0/", "CC-BY-NC-ND-1.0"),
    ("https://creativecommons.org/licenses/by-nd-nc/2.0/", "CC-BY-NC-ND-2.0"),
    ("https://creativecommons.org//licenses/sa/1.0/", "CC-SA-1.0"),
    ("http://creativecommons.org/licenses/publicdomain/", "CC-PDDC"),
    ("http://flickr.com/commons/usage/", "LicenseRef-No-Known-Copyright"),
    ("http://www.usa.gov/copyright.shtml", "LicenseRef-US-Government-Work"),
    ("www.usa.gov/government-works/", "LicenseRef-US-Government-Work"),
    (
      "http%3A%2F%2Fcreativecommons.org%2Flicenses%2Fby-nc-sa%2F2.0%2F",
      "CC-BY-NC-SA-2.0",
    ),
  ],
)
def test_addresses_as_they_are_met(url, id):
  assert licences.parse(url).id == id


def test_public_domain_is_free_in_every_way():
  for id, url in FREE.items():
    licence = licences.parse(id)
    assert licence == licences.Licence(id, url, True, True, False, False)
    assert licences.parse(url) is licence
    assert licences.parse(id.lower()) is licence
    if "creativecommons" in url:
      same(address_forms(url), id)


@pytest.mark.parametrize(
  ("name", "id"),
  [
    ("CC0", "CC0-1.0"),
    ("cc-zero", "CC0-1.0"),
    ("CC0 1.0 Universal", "CC0-1.0"),
    ("CC0 1.0 Universal (CC0 1.0) Public Domain Dedication", "CC0-1.0"),
    ("Public Domain Dedication (CC0)", "CC0-1.0"),
    ("Public Domain Mark", "CC-PDM-1.0"),
    ("Public Domain Mark 1.0 Universal", "CC-PDM-1.0"),
    ("PDM 1.0", "CC-PDM-1.0"),
    ("pdm", "CC-PDM-1.0"),
    ("Public domain", "CC-PDM-1.0"),
    ("No known copyright restrictions", "LicenseRef-No-Known-Copyright"),
    ("United States Government Work", "LicenseRef-US-Government-Work"),
    ("U.S. Government Work", "LicenseRef-US-Government-Work"),
    ("No+known+copyright+restrictions", "LicenseRef-No-Known-Copyright"),
    ("CC BY-NC-ND 2.0", "CC-BY-NC-ND-2.0"),
    ("CC-BY-ND-NC-1.0", "CC-BY-NC-ND-1.0"),
    (
      "Creative Commons Attribution 4.0 International Public License",
      "CC-BY-4.0",
    ),
  ],
)
def test_names_as_they_are_met(name, id):
  assert licences.parse(name).id == id


@pytest.mark.parametrize(
  ("code", "name", "id"),
  [
    (1, "Attribution-NonCommercial-ShareAlike License", "CC-BY-NC-SA-2.0"),
    (2, "Attribution-NonCommercial License", "CC-BY-NC-2.0"),
    (3, "Attribution-NonCommercial-NoDerivs License", "CC-BY-NC-ND-2.0"),
    (4, "Attribution License", "CC-BY-2.0"),
    (5, "Attribution-ShareAlike License", "CC-BY-SA-2.0"),
    (6, "Attribution-NoDerivs License", "CC-BY-ND-2.0"),
    (7, "No known copyright restrictions", "LicenseRef-No-Known-Copyright"),
    (8, "United States Government Work", "LicenseRef-US-Government-Work"),
    (9, "Public Domain Dedication (CC0)", "CC0-1.0"),
    (10, "Public Domain Mark", "CC-PDM-1.0"),
    (11, "CC BY 4.0", "CC-BY-4.0"),
    (12, "CC BY-SA 4.0", "CC-BY-SA-4.0"),
    (13, "CC BY-ND 4.0", "CC-BY-ND-4.0"),
    (14, "CC BY-NC 4.0", "CC-BY-NC-4.0"),
    (15, "CC BY-NC-SA 4.0", "CC-BY-NC-SA-4.0"),
    (16, "CC BY-NC-ND 4.0", "CC-BY-NC-ND-4.0"),
  ],
)
def test_flickrs_codes_and_names_mean_the_same(code, name, id):
  same([str(code), name, name.replace(" ", "+"), name.upper()], id)
  url = licences.parse(id).url
  for text in str(code), name:
    outcome = licences.gate(
      "non-commercial", licence_url=url, licence_name=text
    )
    expected = "licence_no_derivatives" if "ND" in id else licences.parse(id)
    assert outcome == expected


@pytest.mark.parametrize(
  "text",
  [
    *("", " ", "None", "nan", "null"),
    *("0", "17", "-1", "4.0", "04", "٤", "9" * 5000),
    *("All Rights Reserved", "© 2020 A. Photographer", "MIT", "GFDL"),
    *("cc", "CC BY", "CC-BY-SA", "Attribution", "Attribution-Share"),
    *("CC-BY-9.0", "CC-BY-2.1", "CC-BY-4.0-DE", "CC-BY-4.1", "CC-BY-40"),
    *("CC-BY-XX-4.0", "CC-BY-BY-4.0", "CC-BY-SA-ND-4.0", "CC-BY-ND-SA-2.0"),
    *("CC-SA-4.0", "SA 1.0", "CC-BY-3.0-XX", "CC-BY-SA-2.0-SCOTLAND"),
    *("CC0 2.0", "ODC-BY-1.0", "Public domain in the United States"),
    *("CC BY 4.0 or GFDL 1.2", "CC BY-SA 3.0, 2.5, 2.0, 1.0"),
    *("not CC BY 4.0", "CC BY 4.0 (all rights reserved)"),
    "Attribution 4.0 International (CC BY-NC 4.0)",
    "https://creativecommons.org/",
    "https://creativecommons.org/about",
    "https://creativecommons.org/licenses/",
    "https://creativecommons.org/licenses/by/",
    "https://creativecommons.org/licenses/by-xx/4.0/",
    "https://creativecommons.org/licenses/by/9.0/",
    "https://creativecommons.org/licenses/by/2.1/",
    "https://creativecommons.org/licenses/by/4.0/de/",
    "https://creativecommons.org/licenses/by/2.0/more",
    "https://creativecommons.org/licenses/by/2.0/de/more",
    "https://creativecommons.org/licenses/zero/1.0/",
    "https://creativecommons.org/publicdomain/by/4.0/",
    "https://creativecommons.org/publicdomain/zero/2.0/",
    "https://creativecommons.org/licenses/sampling/1.0/",
    "https://creativecommons.org/licenses/sampling+/1.0/",
    "https://creativecommons.org/licenses/nc-sampling+/1.0/",
    "https://creativecommons.org/licenses/devnations/2.0/",
    "https://creativecommons.org/licenses/MIT/",
    "http://evilcreativecommons.org/licenses/by/2.0",
    "http://creativecommons.org.evil.com/licenses/by/2.0/",
    "http://creativecommons.org@evil.com/licenses/by/2.0/",
    "http://evil.com/creativecommons.org/licenses/by/2.0/",
    "http://evil.com/?u=https://creativecommons.org/licenses/by/2.0/",
    "http://creativecommons.com/licenses/by/2.0/",
    "ftp://creativecommons.org/licenses/by/2.0/",
    "javascript:creativecommons.org/licenses/by/2.0/",
    "http://[creativecommons.org/licenses/by/2.0/",
    "https://www.flickr.com/photos/someone/123/",
    "https://rightsstatements.org/vocab/InC/1.0/",
    "http://www.usa.gov/",
  ],
)
def test_what_only_looks_like_a_licence_is_not_recognised(text):
  assert licences.parse(text) is None
  stated = text.strip() and text not in ("None", "nan", "null")
  reason = "licence_unknown" if stated else "licence_missing"
  assert licences.gate("non-commercial", licence_url=text) == reason
  assert licences.gate("non-commercial", licence_name=text) == reason


def test_ids_and_addresses_are_unique():
  everything = licences.LICENCES
  assert len({licence.id for licence in everything}) == len(everything)
  assert len({licence.url for licence in everything}) == len(everything)


@pytest.mark.parametrize("collection", licences.COLLECTIONS)
def test_the_gate_holds_what_the_collection_may_hold(collection):
  for licence in licences.LICENCES:
    if not licence.derivatives:
      expected = "licence_no_derivatives"
    elif collection == "commercial" and not licence.commercial:
      expected = "licence_non_commercial"
    else:
      expected = licence
    assert licences.gate(collection, licence_url=licence.url) == expected
    assert licences.gate(collection, licence_name=licence.id) == expected
    both = licences.gate(
      collection, licence_url=licence.url, licence_name=licence.id
    )
    assert both == expected


BY2 = "http://creativecommons.org/licenses/by/2.0/"


@pytest.mark.parametrize(
  ("url", "name", "outcome"),
  [
    (BY2, "Attribution License", "CC-BY-2.0"),
    (BY2, "cc-by", "CC-BY-2.0"),
    (BY2, "see the page of the author", "CC-BY-2.0"),
    (BY2, "", "CC-BY-2.0"),
    (BY2, "None", "CC-BY-2.0"),
    ("nan", "CC-BY-2.0", "CC-BY-2.0"),
    # Flickr's wording beside an address that says the version.
    (BY2.replace("2.0", "4.0"), "Attribution License", "CC-BY-4.0"),
    (BY2.replace("2.0", "3.0/de"), "CC BY 3.0", "CC-BY-3.0-DE"),
    # The card of CommonCatalog says 4.0 where its rows say 2.0.
    (BY2, "cc-by-4.0", "licence_conflict"),
    (BY2, "CC BY 2.0 DE", "licence_conflict"),
    (BY2, "Attribution-NoDerivs License", "licence_conflict"),
    (BY2, "CC BY-NC", "licence_conflict"),
    (BY2, "CC-BY-9.0", "licence_conflict"),
    (BY2, "All Rights Reserved", "licence_conflict"),
    (BY2, "0", "licence_conflict"),
    (BY2, "CC0", "licence_conflict"),
    # A name cannot save an address that is not recognised.
    ("https://example.org/licence", "CC-BY-2.0", "licence_unknown"),
    ("", "", "licence_missing"),
    ("None", "nan", "licence_missing"),
    ("", "CC BY", "licence_unknown"),
  ],
)
def test_the_address_decides_and_disagreement_is_refused(url, name, outcome):
  result = licences.gate("commercial", licence_url=url, licence_name=name)
  if outcome.startswith("licence_"):
    assert outcome in licences.REASONS
    assert result == outcome
  else:
    assert result == licences.parse(outcome)


def test_an_unknown_collection_is_an_error_that_names_the_choices():
  message = "unknown collection 'all'; .* has commercial, non-commercial"
  with pytest.raises(ValueError, match=message):
    licences.gate("all", licence_url=BY2)


def test_a_rule_of_ones_own_names_ids_and_families():
  assert licences.rule(["cc-by-2.0", "CC0-1.0"]) == {"CC-BY-2.0", "CC0-1.0"}
  family = licences.rule(["CC-BY"])
  assert {"CC-BY-1.0", "CC-BY-4.0", "CC-BY-3.0-DE"} <= family
  assert not any("NC" in id or "SA" in id for id in family)
  gate = lambda id: licences.gate("commercial", licence_name=id, allow=family)
  assert gate("CC-BY-3.0-DE").id == "CC-BY-3.0-DE"
  assert gate("CC-BY-SA-3.0") == gate("CC0-1.0") == "licence_not_allowed"
  assert gate("CC-BY-ND-3.0") == "licence_no_derivatives"
  rule = licences.rule(["CC-BY-NC"])
  assert not isinstance(
    licences.gate("commercial", licence_name="CC-BY-NC-2.0", allow=rule), str
  )


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("CC-BY-ND", "forbids derivatives"),
    ("CC-BY-NC-ND-2.0", "forbids derivatives"),
    ("BY", "expected an id"),
    ("CC-BY-9.0", "expected an id"),
  ],
)
def test_a_rule_cannot_name_what_is_never_held(name, words):
  with pytest.raises(
    ValueError, match=f"catalogue.allow names '{name}'.*{words}"
  ):
    licences.rule([name])
