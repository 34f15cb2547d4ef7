"""What holds for the CPU path holds for the kernels: the same tests, on a device.

The functions are imported: pytest collects them here once more, with the fixtures of this module.
"""

from __future__ import annotations

import pytest

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
    test_axial,
    test_ca_map,
    test_ca_softmax,
    test_ca_softmax_of_large_energies,
    test_ca_weight,
    test_criss_cross,
    test_energies_beyond_float16,
    test_merge,
    test_nothing_at_all,
    test_port_layout,
    test_vectors_of_a_multiple_of_512_bytes,
)
from tests.ops.test_nonfinite import (  # noqa: F401
    test_infinite_values_stay_infinite,
    test_masked_keys_are_never_read,
    test_masked_keys_get_no_gradient_even_from_nan,
    test_nan_of_the_oracle_is_nan,
    test_poison_reaches_no_further_than_in_the_oracle,
    test_positions_without_keys_have_no_part,
    test_the_reach_of_one_position,
)

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture
def cpu_path(device):
    """Stand in for the fixture of that name which the tests have at home."""
    return device
