"""What holds for the CPU path holds for the kernels: the same tests, on a device.

The functions are imported: pytest collects them here once more, with the fixtures of this module.
"""

from __future__ import annotations

import pytest

from crisscross.problem import COMPUTE_DTYPES, PRECISIONS
from crisscross.testing import assert_matches_reference, attention_cases, attention_problems
from tests.ops.test_laws import (  # noqa: F401
    test_a_wild_image_does_not_change_its_neighbour,
    test_each_output_follows_its_own_input,
    test_heads_are_independent_calls,
    test_images_do_not_know_of_each_other,
    test_inputs_are_not_written_to,
    test_merging_constants_gives_the_constant,
    test_outputs_follow_their_inputs,
    test_the_parts_merge_to_the_whole,
    test_the_same_call_gives_the_same_bits,
    test_the_shares_of_the_gradients_add,
    test_transposing_space_transposes_the_result,
)
from tests.ops.test_matches_reference import (  # noqa: F401
    test_ca_map,
    test_ca_softmax,
    test_ca_softmax_of_large_energies,
    test_ca_weight,
    test_energies_beyond_float16,
    test_larger_sizes,
    test_merge,
    test_nothing_at_all,
    test_port_layout,
    test_vectors_of_a_multiple_of_512_bytes,
)
from tests.ops.test_nonfinite import (  # noqa: F401
    test_a_strip_of_one_without_itself,
    test_infinite_values_stay_infinite,
    test_keys_without_any_weight_are_no_keys,
    test_masked_keys_are_never_read,
    test_masked_keys_get_no_gradient_even_from_nan,
    test_merging_at_a_huge_lse,
    test_merging_ignores_what_a_keyless_part_holds,
    test_nan_of_the_oracle_is_nan,
    test_no_warning_escapes,
    test_poison_reaches_no_further_than_in_the_oracle,
    test_positions_without_keys_have_no_part,
    test_the_reach_of_one_position,
)
from tests.support.calls import run_axial, run_whole
from tests.support.properties import law

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture
def backend():
    """Ask for no backend by name: `device` has it that all arrays are on the device."""


@pytest.fixture
def cpu_path(device):
    """Stand in for the fixture of that name which the tests have at home."""
    return device


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_criss_cross(dtype):
    @law(attention_cases(attention_problems(dtypes=(dtype,), precisions=PRECISIONS)))
    def criss_cross_matches_reference(case):
        assert_matches_reference(case, **run_whole(case))

    criss_cross_matches_reference()


@pytest.mark.parametrize("dtype", COMPUTE_DTYPES)
def test_axial(dtype):
    @law(attention_cases(attention_problems(dtypes=(dtype,), precisions=PRECISIONS, axial=True)))
    def axial_matches_reference(case):
        assert_matches_reference(case, **run_axial(case))

    axial_matches_reference()
