# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: the settings, checked before anything is touched, and what goes along to
# other shells.
# Functions say by their status that they failed, and their callers look at it; errexit is only a net under that:
# shellcheck disable=SC2310

# The documented variables: what reproduce.sh holds, and what another host or the stack user gets. Beside them
# OVERRIDE_*_PROJECT_BRANCH, OVERRIDE_*_GIT_BASE and the hooks.
SETTINGS=(WORKSPACE BASE GIT_BASE PROJECTS DEVSTACK_GATE_PROJECTS
    ZUUL_URL ZUUL_PROJECT ZUUL_BRANCH ZUUL_REF ZUUL_CHANGE ZUUL_PATCHSET ZUUL_CHANGES ZUUL_UUID ZUUL_PIPELINE
    GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC GERRIT_CHANGE_NUMBER GERRIT_PATCHSET_NUMBER
    GERRIT_HOST GERRIT_PORT GERRIT_SCHEME GERRIT_CHANGES
    BRANCH_OVERRIDE SKIP_DEVSTACK_GATE_PROJECT DEVSTACK_GATE_TIMEOUT DEVSTACK_GATE_EXERCISES
    DEVSTACK_GATE_TEMPEST DEVSTACK_GATE_TEMPEST_FULL DEVSTACK_GATE_TEMPEST_ALL DEVSTACK_GATE_TEMPEST_REGEX
    DEVSTACK_GATE_TEMPEST_TESTS TEMPEST_CONCURRENCY DEVSTACK_GATE_GRENADE GRENADE_OLD_BRANCH GRENADE_NEW_BRANCH
    ENABLED_SERVICES DEVSTACK_LOCAL_CONFIG KEEP_LOCALRC DEVSTACK_GATE_THIS_HOST)

check_settings() {
    check_workspace
    check_change
    check_branches
    check_projects
    check_tests
}

check_workspace() {
    : "${BASE:=/opt/stack}" "${GIT_BASE:=https://opendev.org}" "${DEVSTACK_GATE_TIMEOUT:=120}"
    if [[ ${WORKSPACE:-} != /* || ! -d $WORKSPACE || ! -w $WORKSPACE ]]; then
        die 2 "WORKSPACE: expected the job's folder, an absolute path that exists and can be written, not '${WORKSPACE:-}'"
    elif [[ $BASE =~ ^/*$ || $BASE != /* || $BASE == *[[:space:]]* || /$BASE/ == */../* ]]; then
        die 2 "BASE: expected an absolute path without blanks, not '$BASE'"
    elif [[ ! $DEVSTACK_GATE_TIMEOUT =~ ^[1-9][0-9]{0,4}$ ]]; then
        die 2 "DEVSTACK_GATE_TIMEOUT: expected minutes, a whole number from 1, not '$DEVSTACK_GATE_TIMEOUT'"
    fi
}

check_change() {
    local name
    if [[ ${ZUUL_REF:-} ]]; then
        need ZUUL_REF ZUUL_URL ZUUL_PROJECT ZUUL_BRANCH
        if [[ ${ZUUL_REF%/*} != "refs/zuul/$ZUUL_BRANCH" || ! ${ZUUL_REF##*/} ]]; then
            die 2 "ZUUL_REF: expected refs/zuul/$ZUUL_BRANCH/ID as ZUUL_BRANCH says, not '$ZUUL_REF'"
        elif [[ ${GERRIT_REFSPEC:-} || ${GERRIT_CHANGES:-} ]]; then
            die 2 "ZUUL_REF and GERRIT_REFSPEC: expected one of them, the change under test is given twice"
        fi
    elif [[ ${GERRIT_REFSPEC:-} && ${ZUUL_BRANCH:-${GERRIT_BRANCH:-}} != "${GERRIT_BRANCH:-}" ]]; then
        die 2 "ZUUL_BRANCH and GERRIT_BRANCH: expected one of them, or the same branch in both"
    fi
    for name in GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC GERRIT_CHANGES; do
        if [[ ${!name:-} && ! ${ZUUL_REF:-} ]]; then need "$name" GERRIT_PROJECT GERRIT_BRANCH GERRIT_REFSPEC; fi
    done
    for name in ZUUL_REF GERRIT_REFSPEC; do
        if [[ ${!name:-} ]] && { [[ ${!name} != refs/* ]] || ! git check-ref-format "${!name}"; }; then
            die 2 "$name: expected a full ref, refs/..., not '${!name}'"
        fi
    done
    check_gerrit_changes
}

check_gerrit_changes() {
    local change
    local -a changes=()
    IFS='^' read -r -a changes <<< "${GERRIT_CHANGES:-}"
    for change in ${changes[@]+"${changes[@]}"}; do
        if [[ ! $change =~ ^[^:]+:[^:]+:refs/[^:]+$ ]] || ! git check-ref-format "${change##*:}"; then
            die 2 "GERRIT_CHANGES: expected project:branch:ref^project:branch:ref, not '$change'"
        fi
    done
}

# need FOR NAME...: all of these are set.
need() {
    local given=$1 name
    shift
    for name in "$@"; do
        if [[ ! ${!name:-} ]]; then die 2 "$name: expected a value, since $given is given"; fi
    done
}

check_branches() {
    local name
    for name in ZUUL_BRANCH GERRIT_BRANCH GRENADE_OLD_BRANCH GRENADE_NEW_BRANCH OVERRIDE_ZUUL_BRANCH BRANCH_OVERRIDE \
        "${!OVERRIDE_@}"; do
        if [[ $name == *BRANCH* && ${!name:-} ]] && ! git check-ref-format --branch "${!name}" > /dev/null 2>&1; then
            die 2 "$name: expected the name of a branch, not '${!name}'"
        fi
    done
    if [[ ${OVERRIDE_ZUUL_BRANCH:-} && ${BRANCH_OVERRIDE:-} && $OVERRIDE_ZUUL_BRANCH != "$BRANCH_OVERRIDE" ]]; then
        die 2 "OVERRIDE_ZUUL_BRANCH and BRANCH_OVERRIDE: expected one of them, or the same branch in both"
    fi
    RUN_BRANCH=${OVERRIDE_ZUUL_BRANCH:-${BRANCH_OVERRIDE:-${ZUUL_BRANCH:-${GERRIT_BRANCH:-master}}}}
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 ]]; then
        need DEVSTACK_GATE_GRENADE GRENADE_OLD_BRANCH
        RUN_BRANCH=${GRENADE_NEW_BRANCH:-$RUN_BRANCH}
    fi
}

# Fills RUN_PROJECTS: each once, the one under test among them in any case.
check_projects() {
    local project listed trigger=''
    local -A taken=()
    if [[ ${ZUUL_REF:-} ]]; then trigger=$ZUUL_PROJECT; else trigger=${GERRIT_PROJECT:-}; fi
    listed=${DEVSTACK_GATE_PROJECTS:-$(sed 's/#.*//' "$HERE/gate/projects.txt" || true)}
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 && " $listed ${PROJECTS:-} $trigger " != *'/grenade'[[:space:]]* ]]; then listed+=' openstack/grenade'; fi
    RUN_PROJECTS=()
    set -f
    # shellcheck disable=SC2086  # a list of words
    set -- ${PROJECTS:-} $listed $trigger
    set +f
    for project in "$@"; do
        if [[ ! $project =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$ ]]; then
            die 2 "PROJECTS: expected names as openstack/nova, not '$project'"
        elif [[ ! ${taken[${project##*/}]:-} ]]; then
            taken[${project##*/}]=$project
            RUN_PROJECTS+=("$project")
        elif [[ ${taken[${project##*/}]} != "$project" ]]; then
            die 2 "PROJECTS: ${taken[${project##*/}]} and $project would have the same folder"
        fi
    done
    if (( ! ${#RUN_PROJECTS[@]} )); then die 2 "DEVSTACK_GATE_PROJECTS: expected projects"; fi
}

check_tests() {
    local name kind=''
    for name in SKIP_DEVSTACK_GATE_PROJECT DEVSTACK_GATE_EXERCISES DEVSTACK_GATE_TEMPEST DEVSTACK_GATE_TEMPEST_FULL \
        DEVSTACK_GATE_TEMPEST_ALL DEVSTACK_GATE_GRENADE KEEP_LOCALRC DEVSTACK_GATE_THIS_HOST; do
        case ${!name:-} in
            '' | 0 | 1) ;;
            *) die 2 "$name: expected 0 or 1, not '${!name}'" ;;
        esac
    done
    if [[ ! ${TEMPEST_CONCURRENCY:-1} =~ ^[1-9][0-9]{0,3}$ ]]; then
        die 2 "TEMPEST_CONCURRENCY: expected a whole number from 1, not '$TEMPEST_CONCURRENCY'"
    fi
    for name in DEVSTACK_GATE_TEMPEST_FULL DEVSTACK_GATE_TEMPEST_ALL DEVSTACK_GATE_TEMPEST_REGEX DEVSTACK_GATE_TEMPEST_TESTS; do
        if [[ ! ${!name:-} || ${!name} == 0 ]]; then continue; fi
        if [[ ${DEVSTACK_GATE_TEMPEST:-0} != 1 ]]; then die 2 "DEVSTACK_GATE_TEMPEST: expected 1, since $name is given"; fi
        if [[ $kind ]]; then die 2 "$kind and $name: expected one of them"; fi
        kind=$name
    done
}

# Print the documented settings that are given, as bash reads them; each value after the filter COMMAND, if any.
print_settings() {
    local name value
    for name in "${SETTINGS[@]}" "${!OVERRIDE_@}"; do
        case $name in
            OVERRIDE_ZUUL_BRANCH | OVERRIDE_*_PROJECT_BRANCH | OVERRIDE_*_GIT_BASE) ;;
            OVERRIDE_*) continue ;;
        esac
        value=${!name:-}
        if [[ $value && $# -gt 0 ]]; then value=$("$@" <<< "$value"); fi
        if [[ $value ]]; then printf 'export %s=%q\n' "$name" "$value"; fi
    done
}

print_hooks() {
    local hook
    for hook in "${HOOKS[@]}"; do
        if declare -F "$hook" > /dev/null; then
            declare -f "$hook"
            printf 'export -f %s\n' "$hook"
        fi
    done
}
