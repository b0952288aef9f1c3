"""National ids of people, by their form and their check digits (python-stdnum).

Those whose form says enough that a number of something else hardly passes: a date of birth or two check digits in it,
letters, or punctuation of its own. Ids of nine or ten plain digits with one check digit are not looked for, since one
in ten numbers would pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import date
from types import ModuleType

from stdnum.be import nn
from stdnum.br import cpf
from stdnum.ca import sin
from stdnum.cn import ric
from stdnum.cz import rc
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fi import hetu
from stdnum.fr import nir
from stdnum.in_ import aadhaar
from stdnum.it import codicefiscale
from stdnum.kr import rrn
from stdnum.mx import curp
from stdnum.no import fodselsnummer
from stdnum.pl import pesel
from stdnum.ro import cnp
from stdnum.se import personnummer
from stdnum.tr import tckimlik
from stdnum.us import ssn
from stdnum.za import idnr as za_idnr

LETTERED = re.compile(r"[A-Z]{4}(?:[A-Z]{2}\d\d[A-EHLMPRST]\d|\d{6}[HM])")  # found by its letters: it, mx


def _born(module: ModuleType) -> Callable[[str], bool]:
    """Valid, of somebody who can be alive: numbers of other things pass with dates of birth in other centuries."""
    return lambda number: module.is_valid(number) and date(1900, 1, 1) <= module.get_birth_date(number) <= date.today()


def _no_years(number: str) -> bool:
    return aadhaar.is_valid(number) and not all(1800 <= int(part) <= 2199 for part in number.split())


_FORMS: dict[str, tuple[Callable[[str], bool], ...]] = {
    r"\d{17}[\dXx]": (_born(ric),),
    r"(?<!\d )[12] ?\d\d ?\d\d ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d(?! \d)": (nir.is_valid,),
    r"[1-8]\d{12}": (_born(cnp), _born(za_idnr)),
    r"\d{11}": (_born(pesel), nn.is_valid, _born(fodselsnummer), tckimlik.is_valid, idnr.is_valid),
    r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d": (nn.is_valid,),
    r"(?<!\d )\d\d \d{3} \d{3} \d{3}(?! \d)": (idnr.is_valid,),
    r"\d{3}\.\d{3}\.\d{3}-\d\d": (cpf.is_valid,),
    r"(?<!\d )[2-9]\d{3} \d{4} \d{4}(?! \d)": (_no_years,),
    r"\d{3}-\d{3}-\d{3}": (sin.is_valid,),
    r"\d{3}-\d\d-\d{4}": (ssn.is_valid,),
    r"(?:\d\d)?\d{6}[-+]\d{4}": (_born(personnummer),),
    r"\d{6}[-+A-FU-Y]\d{3}[0-9A-Y]": (hetu.is_valid,),
    r"\d{6}/\d{4}": (_born(rc),),
    r"\d{6}-[1-8]\d{6}": (_born(rrn),),
    r"\d{8}[A-Z]": (dni.is_valid,),
    r"[XYZ]\d{7}[A-Z]": (nie.is_valid,),
    r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]": (codicefiscale.is_valid,),
    r"[A-Z]{4}\d{6}[HM][A-Z]{5}[0-9A-Z]\d": (curp.is_valid,),
}
_ANY = re.compile(
    rf"(?<![\w.,+/*-])(?<!\w\()(?:{'|'.join(f'({form})' for form in _FORMS)})(?![\w/*^-]|[.,]\d)", re.ASCII
)
_HOLDS = tuple(_FORMS.values())


def find(text: str) -> Iterator[tuple[int, int]]:
    """Where they stand."""
    for match in _ANY.finditer(text):
        if match.lastindex and any(holds(match[0]) for holds in _HOLDS[match.lastindex - 1]):
            yield match.span()
