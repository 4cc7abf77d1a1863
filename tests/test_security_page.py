"""Each sentence of docs/security.md that promises something has a test, which is named here."""

import re

import pytest

from tests.support.pool import PROJECT

PAGE = (PROJECT / "docs/security.md").read_text()
# Each promise, by its first words, and the tests that fail if it is not kept.
PROMISES = {
    "A machine serves one build": [
        "test_inprogress.py::test_of_two_at_once_exactly_one_gets_the_node_and_it_stays_out_of_service"],
    "No line of a change runs before": [
        "test_jobs_driven.py::test_the_node_is_out_of_service_before_the_build_does_anything_else",
        "test_jobs_driven.py::test_a_build_whose_node_cannot_be_taken_fails_and_runs_nothing_of_the_change"],
    "With plugins core, what a build calls": [
        "test_take_node.py::test_the_secret_goes_to_the_job_in_the_body_and_the_file_is_overwritten_and_gone",
        "test_jobs_driven.py::test_the_login_of_the_node_is_gone_before_the_change_runs"],
    "Who may start devstack-vm-inprogress": [
        "test_inprogress.py::test_a_stranger_who_may_start_the_job_gets_no_machine_and_disturbs_none",
        "test_inprogress.py::test_a_build_that_runs_on_another_node_gets_no_machine",
        "test_jobs_driven.py::test_who_may_start_the_job_takes_no_machine_with_that"],
    "The secret of a machine takes no other": [
        "test_inprogress.py::test_the_secret_of_a_machine_takes_it_and_no_other",
        "test_jobs_driven.py::test_each_machine_has_a_secret_of_its_own_only_where_builds_call_jenkins"],
    "A machine that was taken, but": [
        "test_reap.py::test_a_machine_that_no_build_has_is_given_up_after_15_minutes",
        "rules/test_reap_decisions.py::test_a_machine_is_nobodys_only_if_jenkins_says_so"],
    "A person who is let in": ["test_jobs_driven.py::test_a_person_finds_no_login_of_jenkins"],
    "Another machine at the address": ["test_nodessh.py::test_another_host_key_is_refused_before_the_login"],
    "Of logs that HOST mode fetches": [
        "test_gate_host.py::test_logs_are_plain_files_of_ours_whatever_the_node_sends",
        "test_gate_received.py::test_what_is_too_much_is_left_out"],
    "A console that HOST mode shows": [
        "test_gate_host.py::test_a_console_obeys_no_terminal_and_ends_as_the_status_says"],
    "HOST mode lends the node": ["test_gate_host.py::test_nothing_of_the_caller_is_lent_to_the_node"],
    "The data of a test environment": [
        "test_environment_builds.py::test_the_change_is_tested_with_the_environment_which_comes_back_after_a_pass",
        "test_environments.py::test_two_builds_have_the_one_environment_one_after_the_other_and_it_is_reset_between"],
    "What a test prints": ["test_gate_logs.py::test_what_a_test_prints_cannot_pass_for_a_line_of_ours"],
    "vm.db, its copies": [
        "test_vmdatabase.py::test_whatever_the_umask_vm_db_its_copies_and_locks_are_for_the_owner_only",
        "test_vmdatabase.py::test_files_of_an_earlier_release_are_made_private"],
    "A secure configuration, ssh key": [
        "test_gateconfig.py::test_a_file_of_secrets_that_others_can_write_is_refused",
        "test_gateconfig.py::test_the_modes_of_clouds_yaml_are_looked_at"],
    "A lock that is a link": [
        "test_vmdatabase.py::test_a_lock_that_is_no_file_is_refused_and_what_it_leads_to_stays_as_it_is",
        "test_update_image_sh.py::test_a_lock_file_that_is_a_link_is_refused_and_what_it_names_stays_whole",
        "test_status.py::test_nothing_is_written_through_what_others_put_into_the_folder"],
    "A WORKSPACE, or a checkout": [
        "test_update_image_sh.py::test_what_others_can_write_is_refused_and_stays_as_it_is",
        "test_update_image_sh.py::test_what_belongs_to_somebody_else_is_refused",
        "test_devstackfiles.py::test_a_workspace_that_others_can_write_or_own_is_refused",
        "test_launch.py::test_no_console_log_is_written_where_others_could_have_it_written_elsewhere"],
    "Settings and hooks of a checkout": [
        "test_update_image_sh.py::test_nothing_that_a_checkout_s_settings_name_is_run",
        "test_update_image_sh.py::test_hooks_of_the_account_s_template_are_not_run"],
    "Files of a checkout of devstack": [
        "test_devstackfiles.py::test_a_commit_that_no_git_would_check_out_writes_nothing_elsewhere"],
    "Devstack's code runs": [
        "test_devstackfiles.py::test_devstack_s_code_sees_nothing_of_this_host",
        "test_image_caches.py::test_devstack_s_code_ran_on_the_template_as_the_account"],
    "A login in the git base": [
        "test_update_image_sh.py::test_a_login_of_the_base_is_in_no_file_that_others_can_read",
        "test_update_image_sh.py::test_a_login_of_the_base_is_in_no_list_of_processes_and_in_no_file_afterwards"],
    "What is installed beside": [
        "test_requirements.py::test_each_package_is_pinned_with_the_hashes_of_its_files_and_no_index_is_named",
        "test_requirements.py::test_a_file_with_another_hash_is_not_installed"],
    "At the time limit": [
        "test_gate_limit.py::test_nothing_of_a_test_survives_the_time_limit_and_its_logs_are_kept"],
    "A gate script that is killed": [
        "test_gate_limit.py::test_a_script_that_the_test_stopped_hears_the_time_limit_all_the_same",
        "test_gate_limit.py::test_a_killed_script_leaves_no_test_running"],
    "HOST mode gives up": [
        "test_gate_host.py::test_a_node_that_stands_still_is_given_up_after_a_signal",
        "test_gate_host.py::test_a_node_that_floods_us_is_given_up_after_the_time_limit"],
    "Logs have a limit": [
        "test_gate_logs.py::test_there_are_limits_on_number_and_size_and_what_is_left_out_is_told"],
    "The private key of a [group]": [
        "test_groups.py::test_the_first_machine_of_a_group_reaches_the_others_which_go_with_it_and_their_key",
        "rules/test_groups.py::test_each_group_has_keys_of_its_own_which_are_not_shown"],
    "A login of a cloud or of Jenkins": [
        "test_hostile_answers.py::test_the_login_of_a_cloud_goes_to_no_other_server",
        "test_hostile_answers.py::test_the_login_of_jenkins_goes_to_no_other_server",
        "test_hostile_answers.py::test_no_trick_with_an_address_carries_a_login_elsewhere",
        "test_hostile_answers.py::test_the_next_page_of_a_list_is_on_the_server_of_the_first"],
    "The address of a PostgreSQL": [
        "test_postgres.py::test_what_is_wrong_with_the_server_is_said_in_one_line",
        "test_postgres.py::test_a_password_comes_from_libpq_s_own_places_and_a_wrong_one_is_said"],
    "To the user of the scripts": ["test_check.py::test_a_jenkins_that_has_everything_is_found_well"],
}


def promises() -> list[str]:
    """Return the sentences of the page that are promises: each stands by itself after a dash."""
    return re.findall(r"^- (.+)$", PAGE, re.MULTILINE)


def test_each_promise_of_the_page_has_its_tests_and_no_other_is_listed() -> None:
    unlisted = [text for text in promises() if sum(text.startswith(words) for words in PROMISES) != 1]
    gone = [words for words in PROMISES if not any(text.startswith(words) for text in promises())]

    assert (unlisted, gone) == ([], [])


@pytest.mark.parametrize("named", sorted({test for tests in PROMISES.values() for test in tests}))
def test_the_named_test_is_there(named: str) -> None:
    file, _, function = named.partition("::")

    assert re.search(rf"^def {function}\(", (PROJECT / "tests" / file).read_text(), re.MULTILINE)
