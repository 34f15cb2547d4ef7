"""A case carried through the public functions, forward and backward."""

from __future__ import annotations

import crisscross


def run_whole(case, backend=None):
    """out, lse, dq, dk and dv by `criss_cross_attention` and its backward, by name."""
    out, lse = crisscross.criss_cross_attention(
        case.q, case.k, case.v, **case.options, return_lse=True, backend=backend
    )
    dq, dk, dv = crisscross.criss_cross_attention_backward(
        case.dout, case.q, case.k, case.v, out, lse, dlse=case.dlse, **case.options, backend=backend
    )
    return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}


def run_axial(case, backend=None):
    """The same by `axial_attention`; the case has one axis."""
    out, lse = crisscross.axial_attention(
        case.q, case.k, case.v, **case.axial_options, return_lse=True, backend=backend
    )
    dq, dk, dv = crisscross.axial_attention_backward(
        case.dout,
        case.q,
        case.k,
        case.v,
        out,
        lse,
        dlse=case.dlse,
        **case.axial_options,
        backend=backend,
    )
    return {"out": out, "lse": lse, "dq": dq, "dk": dk, "dv": dv}
