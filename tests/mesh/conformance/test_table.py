"""The conformance cases of the flow language, by number, and the tests of each case.

The tests are in the other modules of this folder. They use a mesh only through `support.conformance.CaseMesh`, so that
the same cases run against every deployment.
"""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

CASES: dict[int, tuple[str, ...]] = {
    1: ("test_a_flow_without_steps_picks_parts_of_its_input",),
    2: ("test_a_step_takes_a_part_of_another_ones_output",),
    3: ("test_a_mock_without_an_answer_is_unreachable_and_says_why",),
    4: ("test_a_failing_component_fails_the_run",),
    5: ("test_a_default_without_a_value_is_null",),
    6: ("test_a_part_of_a_default_can_be_picked",),
    7: ("test_a_permanent_failure_ends_its_retries_with_the_last_error",),
    8: ("test_only_the_chosen_branch_runs",),
    9: ("test_items_of_a_batch_need_different_steps",),
    10: (
        "test_a_blob_has_the_id_that_others_give_it_and_can_be_read_back",
        "test_a_blob_that_is_not_there_fails_the_step",
    ),
    11: (
        "test_a_map_gives_its_results_in_order_and_counts_them",
        "test_a_map_over_nothing_has_no_results",
        "test_a_map_does_not_fail_with_its_items",
        "test_a_map_keeps_to_its_own_bound_and_to_the_window",
    ),
    12: ("test_a_flow_kept_in_a_blob_is_evaluated",),
    13: ("test_a_prompt_alone_makes_one_message",),
    15: ("test_a_function_that_raises_fails_with_its_own_words",),
    19: ("test_emptiness_and_zero_are_true", "test_null_and_false_are_false"),
    20: ("test_a_condition_on_something_missing_takes_the_else_branch",),
    21: ("test_an_alternative_that_is_missing_is_a_failure",),
    22: ("test_the_first_alternative_that_is_not_null_is_taken",),
    23: ("test_a_null_output_is_null_whatever_the_path",),
    24: ("test_an_output_that_picks_a_missing_part_of_a_step_fails", "test_a_missing_part_of_the_input_fails"),
    25: ("test_a_step_that_a_result_makes_the_output_need_runs",),
    26: ("test_a_step_that_a_result_makes_another_step_need_runs",),
    27: ("test_an_alternative_is_not_run_when_the_first_has_a_value",),
    28: ("test_an_alternative_runs_when_the_first_turns_out_null",),
    29: ("test_a_step_that_nothing_refers_to_does_not_run",),
    30: ("test_a_step_that_must_execute_runs_and_its_failure_fails_nothing_else",),
    31: ("test_a_failure_passes_down_the_chain_unchanged",),
    32: ("test_a_failure_does_not_stop_a_slower_sibling",),
    33: ("test_a_default_is_returned_literally",),
    34: ("test_a_default_does_not_hide_an_input_that_fails", "test_a_default_does_not_hide_a_missing_route"),
    35: ("test_a_default_stands_in_for_a_time_out_at_once", "test_a_time_out_without_a_default_is_retried"),
    36: ("test_an_invalid_input_is_not_tried_again",),
    37: (
        "test_by_default_there_are_three_retries_and_the_component_sees_each",
        "test_retries_end_with_the_first_success",
    ),
    38: ("test_optional_variables_that_are_not_set_have_the_defaults_of_their_types",),
    39: ("test_a_variable_without_a_value_is_undefined", "test_an_undefined_variable_that_nothing_reads_does_no_harm"),
    40: ("test_the_default_of_the_schema_beats_the_one_beside_the_reference",),
    41: (
        "test_a_part_that_a_variable_lacks_has_the_inline_default",
        "test_a_step_in_a_default_runs_only_when_the_default_is_needed",
    ),
    42: ("test_a_supplied_null_beats_every_default",),
    43: ("test_supplied_variables_are_used_as_they_are", "test_all_items_share_the_variables"),
    44: (
        "test_an_override_merges_members_and_deletes_them_with_null",
        "test_an_override_may_change_the_component_and_what_an_error_means",
    ),
    45: ("test_overrides_that_cannot_be_applied_are_refused_at_once", "test_overrides_of_no_step_change_nothing"),
    46: ("test_a_reference_stays_until_its_own_key_is_nulled",),
    47: ("test_unsound_references_are_fatal_and_the_flow_is_not_stored",),
    48: ("test_a_flow_stored_as_a_literal_is_checked_with_the_outer_one",),
    49: ("test_a_component_without_a_slash_is_stored_and_cannot_be_routed",),
    50: ("test_schemas_without_their_wrapper_are_refused",),
    51: ("test_the_old_way_to_refer_is_refused_wherever_it_stands",),
    52: ("test_nothing_within_a_literal_is_interpreted",),
    53: ("test_a_rule_whose_plugin_lacks_the_component_is_passed_over",),
    54: ("test_a_denied_component_goes_to_the_next_rule", "test_a_component_that_is_not_allowed_has_no_route"),
    55: (
        "test_the_input_decides_between_rules",
        "test_a_condition_on_something_missing_does_not_hold",
        "test_items_of_one_batch_may_take_different_routes",
    ),
    56: ("test_a_wildcard_matches_the_rest_of_the_path",),
    57: ("test_a_route_of_several_segments_is_refused_before_anything_starts",),
    58: ("test_a_batch_fails_if_an_item_does_and_keeps_every_result", "test_a_batch_without_items_completes"),
    61: (
        "test_iterating_ends_with_the_first_result",
        "test_iterating_stops_at_its_bound_with_what_would_come_next",
        "test_iterating_needs_a_result_or_a_next_input",
        "test_a_failing_iteration_fails_the_step_with_its_error",
    ),
    62: (
        "test_a_flow_has_one_id_however_often_and_in_whatever_order_it_is_stored",
        "test_another_flow_has_another_id",
        "test_a_stored_flow_keeps_its_numbers",
    ),
    68: ("test_a_sub_run_has_failed_when_a_step_has_although_its_item_is_fine",),
    69: ("test_as_many_calls_overlap_as_the_window_allows",),
}

REQUIRED = {*range(1, 14), 15, *range(19, 59), 61, 62, 68, 69}
"""Left out, because they need other transports, the command line, a public API or a crash: 14, 16-18, 59, 60, 63-67."""


def names_beside() -> list[str]:
    """The names of the tests in the files of this family, found without importing them."""
    here = Path(__file__)
    return [
        node.name
        for path in sorted(set(here.parent.glob("test_*.py")) - {here})
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_every_case_is_shown_by_a_test_that_exists() -> None:
    names = set(names_beside())
    assert REQUIRED - {number for number, shown_by in CASES.items() if set(shown_by) & names} == set()
    assert {number: gone for number, shown_by in CASES.items() if (gone := set(shown_by) - names)} == {}


def test_every_test_of_the_family_belongs_to_one_case() -> None:
    listed = Counter(name for shown_by in CASES.values() for name in shown_by)
    assert listed == Counter(names_beside()), "a test without a case, in two cases, or twice under one name"
