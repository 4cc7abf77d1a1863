# shellcheck shell=bash
# Sourced by devstack-vm-gate-wrap.sh: the settings, checked before anything is touched, and how other shells get them.
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

SETTINGS=()              # names of the variables of gate/variables.txt
declare -gA JOB_FUNCTIONS=()  # the functions that the job exports: {name: "() { code; }"}
declare -gA JOB_VARIABLES=()  # the variables that the job exports: {name: value}
UNREADABLE=()            # options of env that take out functions which bash cannot read
SWITCHES=(SKIP_DEVSTACK_GATE_PROJECT DEVSTACK_GATE_EXERCISES DEVSTACK_GATE_TEMPEST DEVSTACK_GATE_TEMPEST_FULL
    DEVSTACK_GATE_TEMPEST_ALL DEVSTACK_GATE_TEMPEST_ALL_PLUGINS DEVSTACK_GATE_TEMPEST_NOTESTS DEVSTACK_GATE_GRENADE
    DEVSTACK_GATE_UNSTACK DEVSTACK_GATE_REMOVE_STACK_SUDO KEEP_LOCALRC DEVSTACK_GATE_THIS_HOST)
# Settings in which blanks may mean something.
AS_GIVEN=(WORKSPACE BASE DEVSTACK_LOCAL_CONFIG DEVSTACK_LOCALCONF GRENADE_PLUGINRC DEVSTACK_GATE_SETTINGS)
LOCAL_CONF=/tmp/dg-local.conf # where the builder local_conf of OpenStack's job templates leaves settings
# Settings of the pool's scripts: a Jenkins may set these for all its jobs.
POOL_SETTINGS=(DEVSTACK_GATE_DB DEVSTACK_GATE_SECURE_CONFIG DEVSTACK_GATE_PREFIX DEVSTACK_GATE_CUSTOM_SCRIPT)

# Fill SETTINGS from the table.
read_variables() {
    local name rest
    SETTINGS=()
    while IFS='|' read -r name rest; do
        name=${name%% *}
        if [[ $name != '#'* && $name != *'<'* ]]; then SETTINGS+=("$name"); fi
    done < "$HERE/gate/variables.txt"
}

# Take the functions that the job exports out of this shell: here they could replace commands, or be replaced by ours.
# hand_over gives them to what runs for the job. Note its variables: ours of the same names hide them.
read_functions() {
    local entry name where
    while IFS= read -r -d '' entry; do
        if [[ ${entry%%=*} =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then JOB_VARIABLES[${entry%%=*}]=${entry#*=}; fi
        if [[ $entry != 'BASH_FUNC_'*'%%='* ]]; then continue; fi
        name=${entry%%'%%='*}
        name=${name#BASH_FUNC_}
        if ! where=$(shopt -s extdebug; declare -F -- "$name"); then
            if [[ $name == @(pre_test|gate|post_test|cleanup)_hook ]]; then
                die 2 "$name: expected a function that bash can read without the shopt settings of the job's shell"
            fi
            UNREADABLE+=(-u "BASH_FUNC_$name%%")  # bash has said why
            continue
        fi
        JOB_FUNCTIONS[$name]=${entry#*'%%='}
        # shellcheck disable=SC2163  # the function of that name
        if [[ $where == *' environment' ]]; then unset -f -- "$name"; else export -nf -- "$name"; fi
    done < "/proc/$$/environ"
}

# Fill HIDDEN and bring the job's functions back, in a shell that runs something for the job next: from here on one of
# ours may be the job's.
hand_over() {
    local name
    find_hidden
    for name in "${!JOB_FUNCTIONS[@]}"; do
        eval "$name ${JOB_FUNCTIONS[$name]}"
        # shellcheck disable=SC2163  # the function of that name
        export -f "$name"
    done
}

# Whether a variable of ours hides one that the job exports. Settings, and what we set for its hooks, are shared.
is_hidden() {
    case $1 in
        WORKSPACE | BASE | HOME | PATH | PWD | OLDPWD | SHLVL | _ | LC_ALL | BASH* | SHELLOPTS | OVERRIDE_* | GIT_* | GATE_* \
            | REMAINING_TIME | RE_EXEC | TEST_ENVIRONMENT* | SUBNODE* | PRIMARY_*) return 1 ;;
    esac
    if [[ ! -v JOB_VARIABLES[$1] || " ${SETTINGS[*]} " == *" $1 "* || ${!1-} == "${JOB_VARIABLES[$1]}" ]]; then return 1; fi
    declare -p -- "$1" > /dev/null 2>&1
}

# Fill HIDDEN for env in front of what runs for the job: without the functions that bash cannot read, and with NAME=VALUE
# of the job's variables that ours hide.
find_hidden() {
    local name
    HIDDEN=("${UNREADABLE[@]}")
    for name in "${!JOB_VARIABLES[@]}"; do
        if is_hidden "$name"; then HIDDEN+=("$name=${JOB_VARIABLES[$name]}"); fi
    done
}

# Set REPLY to the job's value of a variable.
job_value() {
    REPLY=${!1-}
    if is_hidden "$1"; then REPLY=${JOB_VARIABLES[$1]}; fi
    if [[ $1 == LC_ALL ]]; then REPLY=${JOB_WAYS[*]#*=}; fi
}

# Print the functions of the job as bash code.
print_functions() {
    local name
    for name in "${!JOB_FUNCTIONS[@]}"; do printf '%s %s\nexport -f %s\n' "$name" "${JOB_FUNCTIONS[$name]}" "$name"; done
}

# Check the folder for temporary files: our tools use it from several folders, and a run removes logs of an earlier one.
check_temporary() {
    if [[ ${TMPDIR:-} && ( $TMPDIR != /* || ! -d $TMPDIR || ! -w $TMPDIR ) ]]; then
        die 2 "TMPDIR: expected a folder that can be written to, by its full path, not '$TMPDIR'"
    elif [[ ${TMPDIR:-}/ == "${WORKSPACE:-}/logs/"* || ${TMPDIR:-}/ == "$BASE"/@(|new/|old/)@(logs|screen-logs)/* ]]; then
        die 2 "TMPDIR: expected a folder outside of the logs, not '$TMPDIR'"
    elif ! holds_temporary; then
        die 1 "${TMPDIR:-/tmp}: expected a folder for temporary files that can be written to, with room on its disk"
    fi
}

# Whether a temporary file can be made and written.
holds_temporary() {
    local file rc=0
    file=$(mktemp) || return
    printf 'x\n' > "$file" || rc=1
    rm -f -- "$file"
    return "$rc"
} 2> /dev/null

check_settings() {
    local name
    check_names
    read_older_words
    read_local_conf
    check_workspace
    check_temporary
    check_change
    check_branches
    check_projects
    check_tests
    # This script begins again, see adopt_orphans: what has become of the settings must not be lost.
    for name in "${SETTINGS[@]}"; do
        if [[ ${!name:-} ]]; then export "${name?}"; fi
    done
}

# Check that every variable that looks like a setting is one. A misspelt one ends the run; for one of earlier years, a
# line says what to do now.
check_names() {
    local name words
    local -a names
    local -A former=()
    read_variables
    while IFS='|' read -r name words; do
        name=${name%% *}
        if [[ $name != '#'* ]]; then former[$name]=${words# }; fi
    done < "$HERE/gate/former-variables.txt"
    read -r -d '' -a names <<< "${DEVSTACK_GATE_PASS:-}" || true
    for name in "${names[@]}"; do
        if [[ ! $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]]; then
            die 2 "DEVSTACK_GATE_PASS: expected names of variables, separated by blanks, not '$name'"
        fi
    done
    for name in "${!DEVSTACK_GATE_@}" "${!OVERRIDE_@}"; do
        if [[ ${!name:-} && ! ${former[$name]:-} ]] && ! is_known "$name"; then
            die 2 "$name: there is no such variable; the nearest name is $(nearest_name "$name" "${SETTINGS[@]}" \
                'OVERRIDE_<PROJECT>_PROJECT_BRANCH' 'OVERRIDE_<PROJECT>_GIT_BASE' || true)"
        fi
    done
    for name in "${!former[@]}"; do
        if [[ ${!name:-} == @(|0|false|False) && $name:${!name:-} != DEVSTACK_GATE_NEUTRON:0 ]]; then continue; fi
        if ! is_known "$name"; then log "$name has no effect here: ${former[$name]}"; fi
    done
}

is_known() {
    case $1 in
        OVERRIDE_?*_PROJECT_BRANCH | OVERRIDE_?*_GIT_BASE) return 0 ;;
    esac
    [[ " ${SETTINGS[*]} ${POOL_SETTINGS[*]} ${DEVSTACK_GATE_PASS:-} " == *[[:space:]]"$1"[[:space:]]* ]]
}

# nearest_name GIVEN NAME...: print the name with the fewest letters to change, add or drop.
nearest_name() {
    printf '%s\n' "${@:2}" | awk -v given="$1" '
        function least(a, b) { return a < b ? a : b }
        function distance(a, b,    i, j, n, m, row, before, above) {
            n = length(a); m = length(b)
            for (j = 0; j <= m; j++) row[j] = j
            for (i = 1; i <= n; i++) {
                before = row[0]; row[0] = i
                for (j = 1; j <= m; j++) {
                    above = row[j]
                    row[j] = least(least(above, row[j - 1]) + 1, before + (substr(a, i, 1) != substr(b, j, 1)))
                    before = above
                }
            }
            return row[m]
        }
        { far = distance(given, $0); if (NR == 1 || far < fewest) { fewest = far; nearest = $0 } }
        END { print nearest }'
}

# make_lines_plain NAME...: remove the line ends and byte order mark of browsers and Windows from these variables, since
# bash and INI files would take them as parts of names and values.
make_lines_plain() {
    local name value
    for name in "$@"; do
        value=${!name:-}
        value=${value//$'\r\n'/$'\n'}
        value=${value%$'\r'}
        value=${value#$'\xef\xbb\xbf'}
        if [[ $value != "${!name:-}" ]]; then printf -v "$name" %s "$value"; fi
    done
}

# strip_blanks NAME...: remove the blanks and line breaks that YAML and browsers add around these variables' values.
strip_blanks() {
    local name value
    for name in "$@"; do
        if [[ " ${AS_GIVEN[*]} " == *" $name "* ]]; then continue; fi
        value=${!name:-}
        value=${value#"${value%%[![:space:]]*}"}
        value=${value%"${value##*[![:space:]]}"}
        if [[ $value != "${!name:-}" ]]; then printf -v "$name" %s "$value"; fi
    done
}

# Translate the words of jobs from devstack-gate's earlier years into today's.
read_older_words() {
    local name
    make_lines_plain "${SETTINGS[@]}" "${!OVERRIDE_@}"
    strip_blanks "${SETTINGS[@]}" "${!OVERRIDE_@}"
    for name in "${SWITCHES[@]}"; do
        case ${!name:-} in
            true | True | TRUE) printf -v "$name" 1 ;;
            false | False | FALSE) printf -v "$name" 0 ;;
            *) ;;
        esac
    done
    for name in OVERRIDE_ZUUL_BRANCH BRANCH_OVERRIDE; do
        if [[ ${!name:-} == default ]]; then unset "$name"; fi
    done
    if [[ ${DEVSTACK_GATE_PROJECTS_OVERRIDE:-} ]]; then
        if [[ ${DEVSTACK_GATE_PROJECTS:-$DEVSTACK_GATE_PROJECTS_OVERRIDE} != "$DEVSTACK_GATE_PROJECTS_OVERRIDE" ]]; then
            die 2 "DEVSTACK_GATE_PROJECTS and DEVSTACK_GATE_PROJECTS_OVERRIDE: expected one of them, or the same projects in both"
        fi
        DEVSTACK_GATE_PROJECTS=$DEVSTACK_GATE_PROJECTS_OVERRIDE PROJECTS=''
    fi
    # Jenkins ends the build after BUILD_TIMEOUT. Unset it: to devstack, a variable of that name means something else.
    if [[ ! ${DEVSTACK_GATE_TIMEOUT:-} && ${BUILD_TIMEOUT:-} =~ ^[1-9][0-9]{5,8}$ ]] && (( BUILD_TIMEOUT >= 600000 )); then
        DEVSTACK_GATE_TIMEOUT=$(( BUILD_TIMEOUT / 60000 - 2 ))
        unset BUILD_TIMEOUT
    fi
}

# Use settings of devstack that the job has left in a file, as if it had exported them.
read_local_conf() {
    local text
    if [[ ! -e $LOCAL_CONF && ! -L $LOCAL_CONF ]]; then return 0; fi
    if [[ -L $LOCAL_CONF || ! -f $LOCAL_CONF || ! -O $LOCAL_CONF || ! -r $LOCAL_CONF ]]; then
        die 2 "$LOCAL_CONF: expected a plain file of the job's user, settings of devstack"
    fi
    text=$(< "$LOCAL_CONF")
    make_lines_plain text
    if [[ ${DEVSTACK_LOCAL_CONFIG:-} == *"$text"* ]]; then return 0; fi # read before: this script goes on as the changed one
    log "settings of devstack: $LOCAL_CONF is used, too"
    export DEVSTACK_LOCAL_CONFIG=$text$'\n[[local|localrc]]\n'${DEVSTACK_LOCAL_CONFIG:-}
}

check_workspace() {
    : "${BASE:=/opt/stack}" "${GIT_BASE:=https://opendev.org}" "${DEVSTACK_GATE_TIMEOUT:=120}"
    if [[ ${WORKSPACE:-} != /* || ! -d $WORKSPACE || ! -w $WORKSPACE ]]; then
        die 2 "WORKSPACE: expected the job's folder, an absolute path that exists and can be written, not '${WORKSPACE:-}'"
    elif [[ ! $BASE =~ ^/[A-Za-z0-9_./+@%:,=-]*$ || $BASE =~ ^/*$ || /$BASE/ == */../* ]]; then
        die 2 "BASE: expected an absolute path of letters, digits and ._-+@%:,=, not '$BASE'"
    elif [[ ! $DEVSTACK_GATE_TIMEOUT =~ ^[1-9][0-9]{0,4}$ ]]; then
        die 2 "DEVSTACK_GATE_TIMEOUT: expected minutes, a whole number from 1, not '$DEVSTACK_GATE_TIMEOUT'"
    fi
    check_apart
    check_addresses
}

# Check that BASE and WORKSPACE do not collide: the stack user gets BASE, and both have folders that are made anew.
check_apart() {
    local base workspace name
    base=$(realpath -m -- "$BASE")
    workspace=$(realpath -m -- "$WORKSPACE")
    if [[ $base == "$workspace" || $base/ == "$workspace/logs/"* ]]; then
        die 2 "BASE: expected another folder than WORKSPACE and its logs/, not '$BASE'"
    fi
    for name in new old logs data cache gate; do
        if [[ $workspace/ == "$base/$name/"* ]]; then die 2 "WORKSPACE: expected a folder that is not in $BASE/$name, which is made anew"; fi
    done
}

# Check that addresses mean the same from every folder.
check_addresses() {
    local name
    for name in GIT_BASE ZUUL_URL "${!OVERRIDE_@}"; do
        if [[ $name == OVERRIDE_* && $name != *_GIT_BASE || ! ${!name:-} ]]; then continue; fi
        if [[ ${!name} == *[[:cntrl:]]* || ! ${!name} =~ ^(/|[A-Za-z][A-Za-z0-9+.-]*://|[^/:~][^/:]*:) ]]; then
            die 2 "$name: expected the URL of a git server or an absolute path, not '${!name}'"
        fi
    done
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
        if [[ ${!name:-} ]] && { [[ ${!name} != refs/* ]] || ! isolated git check-ref-format "${!name}"; }; then
            die 2 "$name: expected a full ref, refs/..., not '${!name}'"
        fi
    done
    for name in ZUUL_COMMIT GERRIT_PATCHSET_REVISION; do
        if [[ ! ${!name:-} =~ ^([0-9a-f]{40}|[0-9a-f]{64})?$ ]]; then die 2 "$name: expected a commit's sha1, not '${!name}'"; fi
    done
    check_changes GERRIT_CHANGES
    if [[ ${ZUUL_REF:-} ]]; then check_changes ZUUL_CHANGES; fi
}

# Check that changes are separated by ^ and nothing else: a list that is read only in part is tested only in part.
check_changes() {
    local name=$1 change value=${!1:-}
    local -a changes=()
    value=${value#"${value%%[![:space:]]*}"}
    value=${value%"${value##*[![:space:]]}"}
    if [[ $value != "${!name:-}" ]]; then export "$name=$value"; fi
    IFS='^' read -r -d '' -a changes <<< "$value^" || true
    for change in "${changes[@]}"; do
        if [[ ! $change =~ [^[:space:]] ]]; then continue; fi
        if [[ ! $change =~ ^[^:[:space:]]+:[^:[:space:]]+:refs/[^:[:space:]]+$ ]] || ! isolated git check-ref-format "${change##*:}"; then
            die 2 "$name: expected project:branch:ref^project:branch:ref, not '$change'"
        fi
    done
}

# need FOR NAME...: check that all of these are set.
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
        if [[ $name == *BRANCH* && ${!name:-} ]] && ! isolated git check-ref-format --branch "${!name}" > /dev/null 2>&1; then
            die 2 "$name: expected the name of a branch, not '${!name}'"
        fi
    done
    # In the words of OpenStack's job templates, default means none.
    for name in OVERRIDE_ZUUL_BRANCH BRANCH_OVERRIDE "${!OVERRIDE_@}"; do
        if [[ $name == @(*_PROJECT_BRANCH|OVERRIDE_ZUUL_BRANCH|BRANCH_OVERRIDE) && ${!name:-} == default ]]; then unset "$name"; fi
    done
    if [[ ${OVERRIDE_ZUUL_BRANCH:-} && ${BRANCH_OVERRIDE:-} && $OVERRIDE_ZUUL_BRANCH != "$BRANCH_OVERRIDE" ]]; then
        die 2 "OVERRIDE_ZUUL_BRANCH and BRANCH_OVERRIDE: expected one of them, or the same branch in both"
    fi
    RUN_BRANCH=${OVERRIDE_ZUUL_BRANCH:-${BRANCH_OVERRIDE:-${ZUUL_BRANCH:-${GERRIT_BRANCH:-master}}}}
    check_grenade
}

# Translate the names of upgrades by direction, from earlier years: to the run's branch, or from it.
check_grenade() {
    local given=${DEVSTACK_GATE_GRENADE:-}
    case $given in
        '' | 0) return ;;
        1 | pullup) ;;
        forward)
            need DEVSTACK_GATE_GRENADE GRENADE_NEW_BRANCH
            : "${GRENADE_OLD_BRANCH:=$RUN_BRANCH}"
            ;;
        sideways-*) : "${GRENADE_OLD_BRANCH:=$RUN_BRANCH}" ;;
        *) die 2 "DEVSTACK_GATE_GRENADE: expected 0, 1, pullup, forward or sideways-NAME, not '$given'" ;;
    esac
    need DEVSTACK_GATE_GRENADE GRENADE_OLD_BRANCH
    DEVSTACK_GATE_GRENADE=1
    RUN_BRANCH=${GRENADE_NEW_BRANCH:-$RUN_BRANCH}
}

# Fill RUN_PROJECTS: each project once, in the order of PROJECTS and the list, always including those with a change. Of
# projects that would have the same folder, the one with a change is meant, else the one in PROJECTS.
check_projects() {
    local project listed trigger changed variable=GERRIT_CHANGES named folder other
    local -A taken=() # folder: project
    trigger=${GERRIT_PROJECT:-}
    if [[ ${ZUUL_REF:-} ]]; then trigger=$ZUUL_PROJECT variable=ZUUL_CHANGES; fi
    changed=$(changed_projects "${!variable:-}")
    listed=${DEVSTACK_GATE_PROJECTS:-$(sed 's/#.*//' "$HERE/gate/projects.txt" || true)}
    if [[ ${DEVSTACK_GATE_GRENADE:-} == 1 && " $listed ${PROJECTS:-} $trigger " != *'/grenade'[[:space:]]* ]]; then listed+=' openstack/grenade'; fi
    set -f
    for project in $trigger; do take_project "${ZUUL_REF:+ZUUL_PROJECT}" "$project"; done
    for project in $changed; do take_project "$variable" "$project"; done
    for project in ${PROJECTS:-}; do take_project PROJECTS "$(todays_name "$project" "$trigger $changed $listed" || true)"; done
    named=" ${!taken[*]} "
    for project in $listed; do
        folder=${project##*/}
        if [[ $named == *" $folder "* ]]; then continue; fi
        for other in "${!taken[@]}"; do
            if [[ ${other,,} == "${folder,,}" && $other != "$folder" ]]; then
                die 2 "${taken[$other]}: expected ${folder}, as $project has it: devstack knows that name only"
            fi
        done
        take_project DEVSTACK_GATE_PROJECTS "$project"
    done
    RUN_PROJECTS=()
    for project in ${PROJECTS:-} $listed $changed $trigger; do
        project=${taken[${project##*/}]}
        if [[ " ${RUN_PROJECTS[*]} " != *" $project "* ]]; then RUN_PROJECTS+=("$project"); fi
    done
    set +f
    if (( ! ${#RUN_PROJECTS[@]} )); then die 2 "DEVSTACK_GATE_PROJECTS: expected projects"; fi
}

# changed_projects CHANGES: print the projects of project:branch:ref^project:branch:ref.
changed_projects() {
    printf '%s\n' "${1//^/$'\n'}" | sed -n 's/:.*//p'
}

# take_project VARIABLE PROJECT: check its name and add it to `taken`.
take_project() {
    local folder=${2##*/}
    if [[ $2 == *.git || ! $2 =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*$ ]]; then
        die 2 "${1:-GERRIT_PROJECT}: expected names as openstack/nova, not '$2'"
    elif [[ ${taken[$folder]:-$2} != "$2" ]]; then
        die 2 "$1: ${taken[$folder]} and $2 would have the same folder"
    fi
    taken[$folder]=$2
}

# todays_name PROJECT OTHERS: print its name; if OpenStack has given up its organisation, the name that the others use.
todays_name() {
    local project=$1 other
    shift
    if [[ $project == @(openstack-dev|openstack-infra|stackforge)/* ]]; then
        for other in $1; do
            if [[ ${other##*/} == "${project##*/}" ]]; then project=$other; fi
        done
    fi
    printf '%s\n' "$project"
}

check_tests() {
    local name kind=''
    for name in "${SWITCHES[@]}"; do
        case ${!name:-} in
            '' | 0 | 1) ;;
            *) die 2 "$name: expected 0 or 1, not '${!name}'" ;;
        esac
    done
    if [[ ! ${TEMPEST_CONCURRENCY:-1} =~ ^[1-9][0-9]{0,3}$ ]]; then
        die 2 "TEMPEST_CONCURRENCY: expected a whole number from 1, not '$TEMPEST_CONCURRENCY'"
    elif [[ ! ${TEMPEST_OS_TEST_TIMEOUT:-1} =~ ^[1-9][0-9]{0,5}$ ]]; then
        die 2 "TEMPEST_OS_TEST_TIMEOUT: expected seconds, a whole number from 1, not '$TEMPEST_OS_TEST_TIMEOUT'"
    fi
    for name in DEVSTACK_GATE_VIRT_DRIVER DEVSTACK_GATE_LIBVIRT_TYPE; do
        if [[ ${!name:-} == *[!A-Za-z0-9_.-]* ]]; then die 2 "$name: expected a name as devstack has it, not '${!name}'"; fi
    done
    for name in LIBS_FROM_GIT DEVSTACK_PROJECT_FROM_GIT; do
        if [[ ${!name:-} == *[!A-Za-z0-9_.,/[:space:]-]* ]]; then
            die 2 "$name: expected names as oslo.config, separated by commas, not '${!name}'"
        fi
    done
    # shellcheck disable=SC2034  # devstack-vm-gate.sh reads it
    if [[ ${DEVSTACK_GATE_TEMPEST_ALL_PLUGINS:-} == 1 && ! ${DEVSTACK_GATE_TEMPEST_REGEX:-} ]]; then DEVSTACK_GATE_TEMPEST_ALL=1; fi
    for name in DEVSTACK_GATE_TEMPEST_FULL DEVSTACK_GATE_TEMPEST_ALL DEVSTACK_GATE_TEMPEST_REGEX DEVSTACK_GATE_TEMPEST_TESTS; do
        if [[ ! ${!name:-} || ${!name} == 0 ]]; then continue; fi
        if [[ ${DEVSTACK_GATE_TEMPEST:-0} != 1 ]]; then die 2 "DEVSTACK_GATE_TEMPEST: expected 1, since $name is given"; fi
        if [[ $kind == *_@(FULL|ALL) ]]; then
            log "$kind has no effect: $name says which tests"
        elif [[ $kind ]]; then
            die 2 "$kind and $name: expected one of them"
        fi
        kind=$name
    done
}

# print_settings [COMMAND...]: print the settings that are given and what DEVSTACK_GATE_PASS names, as bash code; each
# value goes through the filter COMMAND, if there is one.
print_settings() {
    local name value
    local -a names
    read -r -d '' -a names <<< "${DEVSTACK_GATE_PASS:-}" || true
    names=("${SETTINGS[@]}" "${names[@]}")
    for name in "${!OVERRIDE_@}"; do
        if [[ " ${names[*]} " != *" $name "* ]] && is_known "$name"; then names+=("$name"); fi
    done
    for name in "${names[@]}"; do
        job_value "$name"
        value=$REPLY
        if [[ $value && $# -gt 0 ]]; then value=$("$@" <<< "$value"); fi
        if [[ $value ]]; then printf 'export %s=%q\n' "$name" "$value"; fi
    done
}
