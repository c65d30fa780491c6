"""No repacking of ``Linear4bit``'s weight on CPUs with AVX512-BF16, while our operators answer there.

In eval mode on such a CPU bitsandbytes converts the weight to a layout for its own operator: absmax is rounded to
bfloat16, nested statistics are quantised anew when the weight is saved, and an N that is no multiple of 32 fails. Our
operators read the weight as it was quantised. A layer keeps in an attribute whether its CPU has AVX512-BF16;
:func:`install` has that attribute say no. A weight that was repacked before is read as it is, by ``gemv_4bit``.
"""

from __future__ import annotations

from typing import Any

_ATTRIBUTE = "support_avx512bf16_for_cpu"


def _keep(layer: Any, value: bool) -> None:
    vars(layer)[_ATTRIBUTE] = value  # what the layer will see again after uninstall()


_NEVER = property(lambda layer: False, _keep)


def install() -> None:
    """Switch the repacking off, for layers that exist already too. Idempotent."""
    from bitsandbytes.nn import modules

    setattr(modules.Linear4bit, _ATTRIBUTE, _NEVER)


def uninstall() -> None:
    """Let bitsandbytes repack again."""
    from bitsandbytes.nn import modules

    if vars(modules.Linear4bit).get(_ATTRIBUTE) is _NEVER:
        delattr(modules.Linear4bit, _ATTRIBUTE)
