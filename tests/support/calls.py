"""A case carried through the public functions, forward and backward."""

from __future__ import annotations

import crisscross


def run_forward(case, backend=None):
    """out and lse by `criss_cross_attention`."""
    return crisscross.criss_cross_attention(
        case.q, case.k, case.v, **case.options, return_lse=True, backend=backend
    )


def run_backward(case, out, lse, backend=None):
    """dq, dk and dv by `criss_cross_attention_backward`."""
    return crisscross.criss_cross_attention_backward(
        case.dout, case.q, case.k, case.v, out, lse, dlse=case.dlse, **case.options, backend=backend
    )


def run_whole(case, backend=None):
    """out, lse, dq, dk and dv by both, by name."""
    out, lse = run_forward(case, backend)
    dq, dk, dv = run_backward(case, out, lse, backend)
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
