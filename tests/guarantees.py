"""The project's guarantees, as users read them, with the tests that prove each one.

`docs/explanation/guarantees.md` is generated: `python tests/guarantees.py > docs/explanation/guarantees.md`.
Other documents quote sentences of this list between `<!-- promises -->` and `<!-- /promises -->`.
`tests/unit/test_guarantees.py` checks both. A test is written as `file::test`, relative to `tests/`.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE_HEAD = """# Guarantees

Tests prove each sentence; `make test` runs them. Tests about processes kill, stop and cut off real processes over a
real etcd, and read the executions from a ledger that the component server keeps. `tests/guarantees.py` lists the tests
of each sentence.
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """One sentence; `id` never changes, so that links to it hold."""

    id: str
    sentence: str
    tests: tuple[str, ...]


RESULTS = (
    Promise(
        "recorded-first",
        "Every result is journaled before anything follows from it.",
        (
            "mesh/recovery/test_executor.py::test_nothing_is_dispatched_before_its_cause_is_durable",
            "contract/test_sqlite.py::test_after_a_sigkill_everything_confirmed_is_there_and_transactions_are_whole",
        ),
    ),
    Promise(
        "never-again",
        "A step with a journaled result never runs again.",
        (
            "chaos/test_matrix.py::test_200_runs_of_two_executors_end_right_when_one_is_killed",
            "mesh/recovery/test_kill_everywhere.py::test_a_run_killed_at_any_journal_position_ends_as_if_nothing_had_happened",
            "mesh/cli/test_run.py::test_a_killed_run_goes_on_after_its_last_successful_step",
        ),
    ),
    Promise(
        "exactly-once",
        "Each step has exactly one journaled result.",
        (
            "contract/test_writer.py::test_under_any_faults_each_write_happens_once_and_in_order",
            "contract/test_writer.py::test_an_undecided_transaction_is_sent_again_byte_for_byte_and_written_once",
        ),
    ),
    Promise(
        "at-least-once",
        "Delivery to a component is at least once; the idempotency key identifies a repeat.",
        (
            "mesh/api/test_services.py::test_the_calls_of_a_killed_host_are_made_again_on_another_one_with_the_next_attempt",
            "mesh/bridges/test_sdk_behind_host.py::test_the_facts_of_a_call_reach_the_component",
            "mesh/bridges/test_mcp_stdio.py::test_a_call_tells_the_server_its_idempotency_key_and_attempt",
        ),
    ),
    Promise(
        "replay",
        "An interrupted run ends with the same result as an uninterrupted one.",
        (
            "unit/run/test_engine.py::test_every_prefix_of_a_journal_leads_to_the_same_result",
            "unit/run/test_engine.py::test_neither_order_nor_crashes_change_the_result",
        ),
    ),
    Promise(
        "retries-survive",
        "Retries are counted in the journal: a crash grants no extra ones.",
        ("unit/run/test_engine.py::test_retry_budgets_survive_the_owner",),
    ),
    Promise(
        "lost-calls",
        "A lost call is retried before a default applies.",
        ("unit/run/test_engine.py::test_a_lost_call_is_retried_before_a_default_applies",),
    ),
    Promise(
        "clocks",
        "Setting a wall clock changes no wait; after a take-over a wait lasts at most its whole duration, whatever the "
        "clocks.",
        (
            "mesh/recovery/test_clocks.py::test_a_wait_ends_in_time_although_the_clock_of_its_executor_is_set_back_an_hour",
            "mesh/recovery/test_clocks.py::test_a_wait_ends_in_time_after_a_take_over_between_owners_whose_clocks_differ",
            "unit/run/test_clocks.py::test_a_lagging_owner_goes_on_from_the_last_entry_of_the_previous_owner",
        ),
    ),
    Promise(
        "one-run",
        "Submissions are idempotent: the same submission under the same run id makes one run.",
        (
            "mesh/api/test_control_plane.py::test_fifty_submissions_of_one_run_id_make_one_run",
            "mesh/api/test_batches.py::test_one_request_is_one_run_whichever_call_carries_it",
            "mesh/api/test_batches.py::test_a_connection_that_breaks_within_a_batch_leaves_one_whole_run",
            "mesh/api/test_runs.py::test_fifty_clients_with_one_run_id_make_one_run",
        ),
    ),
    Promise(
        "cancel-or-complete",
        "A run that is cancelled while it ends has one outcome; a cancel after the end changes nothing.",
        (
            "mesh/recovery/test_promises.py::test_completion_and_cancel_race_to_exactly_one_outcome",
            "mesh/recovery/test_under_pressure.py::test_a_cancel_after_the_end_creates_nothing",
        ),
    ),
    Promise(
        "events",
        "A watcher that loses its connection continues where it was: no durable event is missed or repeated.",
        (
            "mesh/api/test_watch.py::test_a_cut_connection_loses_no_event_and_repeats_none",
            "mesh/api/test_watch.py::test_every_position_of_a_history_is_a_place_to_go_on_from",
        ),
    ),
)

DEATHS = (
    Promise(
        "calls-outlive",
        "A call in flight outlives its executor: the next owner joins it instead of repeating it.",
        (
            "mesh/api/test_services.py::test_a_call_in_flight_when_its_executor_is_killed_is_joined_and_not_made_again",
            "mesh/recovery/test_take_over.py::test_a_held_result_reaches_the_next_owner_although_nobody_listened_when_it_came",
        ),
    ),
    Promise(
        "fenced",
        "An executor that has lost its session is fenced: its late writes are rejected.",
        (
            "chaos/test_matrix.py::test_an_executor_that_was_stopped_beyond_its_lease_writes_nothing_late_and_comes_back_as_another",
            "contract/test_writer.py::test_a_transaction_that_arrives_after_the_loss_changes_nothing",
            "mesh/etcd/test_faults.py::test_a_write_that_lay_behind_a_stopped_member_does_not_land_late",
        ),
    ),
    Promise(
        "fast-take-over",
        "The death of an executor process is detected at once, before its lease expires.",
        (
            "mesh/api/test_services.py::test_the_session_of_a_killed_executor_is_gone_long_before_its_lease_runs_out",
            "mesh/recovery/test_liveness.py::test_the_session_of_an_executor_whose_address_refuses_connections_is_deleted",
        ),
    ),
    Promise(
        "take-over-again",
        "Runs that move to an executor which also dies move to the next one.",
        (
            "mesh/recovery/test_worst_moments.py::test_runs_that_move_to_an_executor_which_dies_before_it_takes_them_up_move_on",
            "mesh/api/test_services.py::test_runs_that_nobody_can_take_over_wait_for_the_first_executor_that_comes",
        ),
    ),
    Promise(
        "handed-over",
        "An executor that is asked to stop hands its runs over without losing an attempt.",
        (
            "mesh/api/test_services.py::test_an_executor_that_is_asked_to_end_hands_its_runs_over_without_losing_an_attempt",
            "chaos/test_matrix.py::test_a_rolling_restart_of_three_executors_loses_no_attempt_and_waits_for_no_lease",
        ),
    ),
    Promise(
        "update",
        "A mesh is updated from the version before while runs go on, one process at a time; stores and journals of "
        "that version are read.",
        (
            "mesh/recovery/test_rolling_update.py::test_an_update_from_the_last_version_one_process_at_a_time_loses_and_repeats_nothing",
            "mesh/recovery/test_upgrade.py::test_runs_from_before_are_packed_after_the_grace_while_the_mesh_works_and_read_alike",
            "mesh/recovery/test_upgrade.py::test_old_and_new_control_planes_answer_alike_within_the_grace_and_the_update_can_be_taken_back",
            "mesh/recovery/test_old_stores.py::test_the_keys_of_an_earlier_mesh_are_read_alike_and_its_live_runs_end_alike",
            "mesh/recovery/test_old_stores.py::test_a_folder_of_an_earlier_version_is_listed_shown_and_its_interrupted_runs_end_alike",
            "unit/run/test_recorded_journals.py::test_a_recorded_journal_is_replayed_to_the_same_state_and_continued_to_the_same_end",
            "unit/test_public_names.py::test_every_public_name_of_a_released_tree_is_still_there",
        ),
    ),
    Promise(
        "poison",
        "A run that crashes its executor is abandoned after five crashes in a row; no other run is lost.",
        (
            "mesh/recovery/test_worst_moments.py::test_a_run_that_kills_its_executors_meets_five_of_them_and_no_more",
            "mesh/recovery/test_worst_moments.py::test_a_run_that_kills_the_executors_that_read_its_journal_meets_five_of_them_and_no_more",
            "mesh/recovery/test_take_over.py::test_a_run_whose_owners_die_again_and_again_is_given_up",
            "mesh/recovery/test_take_over.py::test_runs_read_together_with_one_that_kills_are_read_alone_and_go_on",
        ),
    ),
    Promise(
        "host-death",
        "Calls of a dead host are retried on another host, under the same key.",
        (
            "chaos/test_matrix.py::test_the_calls_of_a_killed_host_or_component_server_are_made_again_and_no_others",
            "mesh/api/test_services.py::test_the_calls_of_a_killed_host_are_made_again_on_another_one_with_the_next_attempt",
            "mesh/recovery/test_links.py::test_calls_are_given_up_when_the_address_refuses_connections",
        ),
    ),
    Promise(
        "blip",
        "A broken stream costs no attempt: calls continue, and are joined after the reconnect.",
        (
            "mesh/recovery/test_links.py::test_calls_go_on_when_the_stream_is_cut_and_are_joined_when_it_is_back",
            "mesh/recovery/test_links.py::test_after_a_lost_acknowledgement_the_next_attempt_is_really_executed",
        ),
    ),
    Promise(
        "server-crash",
        "A crash of a component server fails its calls in flight and nothing else; the server is restarted.",
        (
            "mesh/bridges/test_stepflow_stdio.py::test_a_crash_fails_the_call_as_unreachable_and_the_server_comes_back",
            "mesh/bridges/test_mcp_stdio.py::test_a_repeated_call_succeeds_after_the_server_crashed_once",
        ),
    ),
    Promise(
        "leader-death",
        "Runs continue when the leading control plane dies, and clients fail over to another one.",
        (
            "chaos/test_matrix.py::test_when_the_leading_control_plane_is_killed_runs_go_on_and_another_one_leads",
            "mesh/api/test_process.py::test_a_client_goes_on_at_another_control_plane_when_the_leading_one_is_killed",
            "mesh/recovery/test_take_over.py::test_a_leader_that_dies_is_succeeded_and_its_late_transactions_change_nothing",
        ),
    ),
    Promise(
        "cut-off-leader",
        "A control plane that is cut off from several executors disturbs no run.",
        ("mesh/recovery/test_worst_moments.py::test_a_leader_that_is_cut_off_from_all_executors_disturbs_no_run",),
    ),
    Promise(
        "no-control-plane",
        "While no control plane runs, runs continue, and no executor loses its session.",
        ("chaos/test_matrix.py::test_runs_go_on_and_no_session_ends_while_all_control_planes_are_down",),
    ),
    Promise(
        "etcd-member",
        "The death of an etcd member delays runs and has no other effect.",
        ("chaos/test_matrix.py::test_a_killed_member_of_etcd_delays_runs_and_changes_nothing_else",),
    ),
    Promise(
        "etcd-down",
        "An etcd outage loses nothing, and no journaled work is repeated after it.",
        (
            "chaos/test_matrix.py::test_nothing_is_lost_or_repeated_when_etcd_was_down",
            "mesh/etcd/test_faults.py::test_a_killed_etcd_that_returns_has_lost_and_repeated_nothing",
        ),
    ),
    Promise(
        "etcd-full",
        "A nearly full etcd accepts no new runs, so that running ones can end; all continue when it has room again.",
        (
            "unit/control_plane/test_pressure.py::"
            "test_under_three_times_the_load_the_store_never_fills_and_works_at_its_rate",
            "mesh/recovery/test_worst_moments.py::"
            "test_a_full_etcd_takes_no_new_runs_and_lets_running_ones_end_and_goes_on_when_there_is_room",
            "mesh/api/test_process.py::test_a_nearly_full_etcd_takes_no_new_runs",
        ),
    ),
    Promise(
        "busy-mesh",
        "A submission that a busy mesh refuses is tried again when the mesh asks for it, and makes one run.",
        (
            "mesh/api/test_busy.py::test_a_submission_waits_as_long_as_it_is_asked_to_and_tells_once",
            "mesh/api/test_busy.py::test_a_streamed_batch_is_sent_again_from_its_first_input",
            "mesh/api/test_busy.py::test_of_several_runs_only_the_refused_ones_are_sent_again",
        ),
    ),
    Promise(
        "watches",
        "Events that a watch of etcd missed, deletions included, are recovered by a list.",
        (
            "mesh/etcd/test_faults.py::test_a_follower_learns_of_deletions_that_were_compacted_behind_its_watch",
            "mesh/etcd/test_faults.py::test_a_watch_cut_in_the_middle_of_messages_tells_every_revision_once",
            "mesh/etcd/test_compaction.py::"
            "test_watches_at_a_high_rate_lose_and_repeat_nothing_while_the_store_is_compacted",
        ),
    ),
    Promise(
        "replaced-etcd",
        "A live mesh goes on, without a restart, after its etcd was wiped or restored from an older copy.",
        (
            "mesh/etcd/test_replaced.py::test_a_wiped_etcd_loses_its_runs_and_the_mesh_serves_new_ones",
            "mesh/etcd/test_replaced.py::test_an_etcd_restored_from_an_older_copy_goes_on_from_there",
        ),
    ),
    Promise(
        "unread-runs",
        "A run that no executor can read harms no other run, is shown as far as it can be read, and can be cancelled.",
        (
            "mesh/recovery/test_take_over.py::test_a_run_that_nobody_here_can_read_waits_and_harms_no_other",
            "mesh/recovery/test_take_over.py::test_a_run_that_nobody_can_read_can_be_cancelled",
            "mesh/recovery/test_take_over.py::"
            "test_what_precedes_an_entry_of_a_later_version_is_shown_and_followed_to_the_end",
        ),
    ),
    Promise(
        "flat-lists",
        "A page of runs reads the same number of keys however many runs there are.",
        ("mesh/api/test_listing.py::test_a_page_reads_as_much_of_a_large_store_as_of_a_small_one",),
    ),
    Promise(
        "blobs-down",
        "A step that needs the blob store while it is full or down waits; a component is not executed again for it.",
        (
            "unit/component_host/test_host.py::test_a_call_waits_for_a_blob_store_that_is_away_and_is_executed_once",
            "mesh/recovery/test_blob_store_away.py::test_a_step_waits_for_a_full_blob_store_and_is_executed_once",
        ),
    ),
)

BOUNDS = (
    Promise(
        "no-deadlock",
        "A parent never holds the slot that its child needs: components may evaluate flows that call them again.",
        (
            "mesh/recovery/test_under_pressure.py::"
            "test_a_hundred_parents_wait_for_a_hundred_children_on_a_host_for_a_hundred_calls",
            "mesh/recovery/test_under_pressure.py::test_a_component_on_a_host_for_one_call_evaluates_flows_that_call_it_again",
            "mesh/recovery/test_under_pressure.py::"
            "test_a_server_that_takes_one_execute_at_a_time_evaluates_flows_that_call_it_again",
            "unit/run/test_engine.py::test_a_parent_lends_its_place_so_a_window_of_one_suffices",
        ),
    ),
    Promise(
        "window",
        "A run never has more calls in flight than its concurrency window, items and sub-runs included.",
        (
            "unit/run/test_engine.py::test_the_window_spans_all_items_and_sub_runs",
            "mesh/api/test_control_plane.py::test_a_batch_keeps_its_window_over_all_partitions",
        ),
    ),
    Promise(
        "capacity",
        "A host gets no more calls than its capacity; further calls wait in their executor, where they can move.",
        (
            "mesh/recovery/test_links.py::test_what_has_no_credit_waits_in_the_executor",
            "unit/component_host/test_credits.py::test_never_more_calls_than_the_capacity_are_in_flight_and_all_are_made",
        ),
    ),
    Promise(
        "stuck",
        "A timeout counts from the beginning of the execution; a server full of calls that never return is replaced.",
        (
            "mesh/bridges/test_capacity.py::test_a_quick_call_behind_sixty_that_hang_succeeds_at_its_first_attempt",
            "mesh/bridges/test_capacity.py::"
            "test_a_server_full_of_abandoned_calls_is_started_again_once_its_live_call_has_ended",
        ),
    ),
    Promise(
        "frames",
        "Any number of calls that are ready at once reach their host.",
        (
            "mesh/recovery/test_under_pressure.py::test_five_mebibytes_of_calls_that_are_ready_at_once_all_reach_one_host",
            "unit/rpc/test_frames.py::test_a_large_frame_is_split_between_its_elements_and_nothing_is_lost",
        ),
    ),
    Promise(
        "waiting-is-cheap",
        "A waiting run costs only memory: no task, no timer, no watch.",
        (
            "mesh/recovery/test_live_runs.py::test_a_run_that_waits_costs_no_task_no_timer_and_no_watch",
            "mesh/recovery/test_live_runs.py::test_what_is_done_for_one_run_does_not_look_at_all_others",
            "mesh/recovery/test_executor.py::test_durable_sleeps_of_many_runs_share_one_timer_and_leave_nothing_behind",
        ),
    ),
    Promise(
        "large-results",
        "A result of any size is read in chunks, over the death of a server, and is saved as a whole file or none.",
        (
            "contract/test_result_parts.py::test_the_text_of_a_result_is_the_concatenation_of_its_parts_from_any_offset",
            "contract/test_result_parts.py::test_what_is_missing_or_damaged_ends_the_reading",
            "mesh/api/test_results.py::test_a_stream_goes_on_at_another_server_where_the_first_one_stopped",
            "mesh/cli/test_results.py::test_a_large_result_goes_to_stdout_and_to_a_file",
            "mesh/cli/test_results.py::test_ctrl_c_leaves_the_file_that_was_there_before",
        ),
    ),
    Promise(
        "values-once",
        "A result is stored once: results composed of it refer to it, and are joined only as the input of a component.",
        (
            "mesh/recovery/test_composed_results.py::test_a_single_result_is_stored_once",
            "mesh/recovery/test_composed_results.py::test_a_path_reads_its_part_of_a_map_over_many_answers",
            "mesh/recovery/test_composed_results.py::test_a_result_of_many_answers_refers_to_the_journal_and_is_streamed",
            "mesh/recovery/test_composed_results.py::test_an_input_above_the_limit_fails_before_the_call_and_names_the_way_out",
            "mesh/recovery/test_composed_results.py::test_a_run_of_the_former_version_keeps_its_results_as_before",
            "unit/run/test_composed.py::test_an_output_far_larger_than_memory_takes_none",
        ),
    ),
    Promise(
        "payloads",
        "Every API rejects payloads over 16 MiB.",
        (
            "mesh/api/test_doors.py::test_a_blob_above_the_limit_is_refused_whole_and_in_pieces",
            "mesh/bridges/test_stepflow_stdio_others.py::test_a_result_above_the_payload_limit_fails_its_call_only",
            "unit/run/test_engine.py::test_a_composed_input_above_the_payload_limit_fails_its_step",
        ),
    ),
    Promise(
        "retention",
        "Ended runs are removed after their retention, or earlier when they exceed the budget; running ones never are.",
        (
            "mesh/api/test_upkeep.py::test_old_runs_go_with_their_blobs_and_young_ones_stay",
            "mesh/api/test_upkeep.py::test_over_the_bound_on_bytes_the_runs_that_ended_first_go_and_no_run_is_read",
            "mesh/api/test_retention.py::test_runs_that_have_not_ended_stay_whatever_the_budget",
            "mesh/cli/test_folders.py::test_the_end_of_a_run_removes_old_runs_as_the_configuration_says",
            "unit/embedded/test_folder_retention.py::test_a_run_that_has_not_ended_is_never_removed",
        ),
    ),
    Promise(
        "packing",
        "Ended runs leave etcd for the blob store, and can be read at any moment, also when a leader dies meanwhile.",
        (
            "mesh/api/test_packing.py::test_a_leader_that_dies_at_any_step_of_packing_loses_nothing_and_leaves_nothing",
            "mesh/api/test_packing.py::test_each_run_is_readable_once_at_each_step_of_packing",
            "mesh/api/test_packed_runs.py::test_any_order_of_events_reads_alike_before_and_after_packing",
            "mesh/api/test_archive.py::test_no_moment_of_packing_or_rewriting_is_without_a_run",
            "mesh/api/test_upkeep.py::test_a_leader_that_dies_at_any_step_of_a_rewrite_loses_nothing",
        ),
    ),
    Promise(
        "deletion",
        "A deleted run is gone for all readers at once, and stays gone.",
        ("mesh/api/test_packing.py::test_a_run_deleted_at_any_step_of_packing_is_gone_at_once_and_stays_gone",),
    ),
)

VALUES = (
    Promise(
        "json",
        "JSON text keeps its big integers and the order of its members, and no newline in it breaks a protocol.",
        (
            "mesh/recovery/test_under_pressure.py::"
            "test_legal_json_with_newlines_everywhere_passes_every_door_and_reaches_components_whole",
            "mesh/bridges/test_stepflow_stdio.py::test_values_pass_through_exactly",
            "mesh/api/test_runs.py::test_values_come_back_in_the_form_asked_for",
        ),
    ),
    Promise(
        "proxies",
        "No connection between the parts of a mesh, and none to the same machine, uses a proxy from the environment.",
        (
            "unit/test_proxies.py::test_parts_of_a_mesh_use_no_proxy_wherever_they_are",
            "unit/test_proxies.py::test_clients_are_made_only_where_the_rule_is_asked",
            "mesh/api/test_proxies.py::test_services_clients_and_servers_of_a_mesh_use_no_proxy_among_themselves",
        ),
    ),
    Promise(
        "environment",
        "A component server gets only the environment of its configuration; its whole process group ends with it.",
        (
            "mesh/bridges/test_server_process.py::test_a_server_sees_only_the_variables_meant_for_it",
            "mesh/bridges/test_server_process.py::test_closing_ends_the_whole_process_group",
            "mesh/bridges/test_server_process.py::test_no_orphan_is_left_when_the_host_is_sigkilled",
        ),
    ),
    Promise(
        "secrets",
        "A secret never appears in a log or an error.",
        (
            "unit/test_telemetry.py::test_secrets_inside_of_fields_are_redacted",
            "mesh/cli/test_secrets.py::test_a_failure_that_quotes_a_value_of_the_environment_is_shown_without_it",
            "mesh/cli/test_secrets.py::test_a_failure_that_quotes_a_secret_input_is_shown_without_it_everywhere",
            "mesh/bridges/test_stepflow_stdio_others.py::test_a_secret_from_the_configuration_does_not_appear_in_an_error",
            "contract/test_blobs.py::test_errors_of_a_bucket_are_ours_and_hold_no_secret",
        ),
    ),
    Promise(
        "open-ports",
        "No service listens beyond its machine without TLS, unless `--insecure` declares the network trusted.",
        (
            "mesh/api/test_services.py::test_every_service_refuses_to_listen_beyond_this_machine_without_tls",
            "mesh/api/test_services.py::test_all_services_talk_over_tls_and_ask_each_other_for_certificates",
        ),
    ),
)

SECTIONS = {
    "Results": RESULTS,
    "When something dies": DEATHS,
    "Under pressure": BOUNDS,
    "Values and secrets": VALUES,
}
PROMISES = tuple(promise for promises in SECTIONS.values() for promise in promises)


def page() -> str:
    """Return the page for users."""
    parts = [PAGE_HEAD]
    for title, promises in SECTIONS.items():
        parts.append(f"\n## {title}\n\n")
        parts += [f'- <a id="{promise.id}"></a>{promise.sentence}\n' for promise in promises]
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
