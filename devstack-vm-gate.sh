#!/usr/bin/env bash
# shellcheck disable=SC2310  # errexit is only a net: see CONTRIBUTING.md

usage() {
    cat <<'EOT'
Usage: devstack-vm-gate.sh

Configures and runs the devstack in $BASE/new/devstack, checks that the change under test is in what it has installed,
then runs its exercises or tempest; or an upgrade with grenade, then those of them that the job asks for.
devstack-vm-gate-wrap.sh runs it, when no gate_hook replaces it; a gate_hook may call it. It gives the trees to the
user stack and goes on as that user.

Settings are environment variables, see docs/gate.md.

Exit code: that of the first part that failed; 2 wrong settings; 3 the change is not in what was installed.
EOT
}

declare -gA SECRETS=()
CHANGES=()         # a word TREE:COMMIT for each tree that was set up with a change
SETTINGS_FILES=()  # of devstack, those written so far
SUDOERS=/etc/sudoers.d/50_stack_sh
PROXIES=(http_proxy https_proxy ftp_proxy all_proxy no_proxy) # and in capital letters
BEGIN='# devstack-gate: begin' # around what this script writes into devstack's settings
END='# devstack-gate: end'
TEMPEST_CONSTRAINTS=tempest-constraints.txt # in the folder of the trees

check_devstack() {
    local words
    # Without the wrap script there is no such record.
    words=$(cat -- "$BASE/gate/changes" 2> /dev/null || list_changes "$BASE")
    read -r -d '' -a CHANGES <<< "$words" || true
    : "${DEVSTACK_GATE_GRENADE:=0}" "${DEVSTACK_GATE_UNSTACK:=0}" "${LIBS_FROM_GIT:=}" "${DEVSTACK_PROJECT_FROM_GIT:=}"
    # What is added to devstack's settings must not also reach it by the environment: there it would replace them.
    export -n ENABLED_SERVICES OVERRIDE_ENABLED_SERVICES DEVSTACK_LOCAL_CONFIG DEVSTACK_LOCALCONF LIBS_FROM_GIT
    if [[ ! -x $DEVSTACK/stack.sh ]]; then
        die 2 "PROJECTS: expected a devstack among them, there is no $DEVSTACK/stack.sh"
    elif [[ $DEVSTACK_GATE_GRENADE == 1 && ! -x $NEW/grenade/grenade.sh ]]; then
        die 2 "DEVSTACK_GATE_GRENADE: there is no $NEW/grenade/grenade.sh"
    fi
    choose_tests
    if [[ $DEVSTACK_GATE_TEMPEST == 1 && ! -d $NEW/tempest ]]; then
        die 2 "DEVSTACK_GATE_TEMPEST: there is no $NEW/tempest"
    elif [[ $DEVSTACK_GATE_EXERCISES == 1 && ! -x $DEVSTACK/exercise.sh ]]; then
        die 2 "DEVSTACK_GATE_EXERCISES: there is no $DEVSTACK/exercise.sh"
    fi
}

# Choose exercise.sh if there is one; else tempest, if the job has chosen nothing at all. An upgrade is a test itself.
choose_tests() {
    local name chosen=''
    for name in DEVSTACK_GATE_EXERCISES "${!DEVSTACK_GATE_TEMPEST@}"; do chosen+=${!name:-}; done
    if [[ $DEVSTACK_GATE_GRENADE == 1 ]]; then
        :
    elif [[ ! ${DEVSTACK_GATE_EXERCISES:-} && ${DEVSTACK_GATE_TEMPEST:-} != 1 && -x $DEVSTACK/exercise.sh ]]; then
        DEVSTACK_GATE_EXERCISES=1
    elif [[ ! $chosen && -d $NEW/tempest ]]; then
        DEVSTACK_GATE_TEMPEST=1
    fi
    : "${DEVSTACK_GATE_EXERCISES:=0}" "${DEVSTACK_GATE_TEMPEST:=0}" "${DEVSTACK_GATE_TEMPEST_NOTESTS:=0}"
}

# Give the trees to the stack user. Until now they belonged to the job's user, whose hooks may have changed them.
give_trees_to_stack() {
    local tree
    for tree in "$NEW" "$BASE/old"; do
        if [[ -d $tree ]]; then as_root chown -R stack:stack -- "$tree/"; fi  # also if it is a link
    done
}

# Go on as devstack's owner, with the documented settings and those that it takes to reach package indexes.
become_owner() {
    local owner=$1 script=$2 name
    # shellcheck disable=SC2016,SC2119  # the owner's bash expands it; no filter
    {
        print_settings
        for name in "${PROXIES[@]}" "${PROXIES[@]^^}"; do
            if [[ ${!name:-} ]]; then printf 'export %s=%q\n' "$name" "${!name}"; fi
        done
        print_pip_settings
    } | as_user "$owner" bash -c 'set -e; eval "$(cat)"; exec bash "$1" < /dev/null' bash "$script"
}

# Print the job's own pip settings, with the image's cache in them: they hide /etc/pip.conf, which names the cache (see
# use_pip_cache).
print_pip_settings() {
    local name value mode=''
    if [[ -r $BASE/gate/pip ]]; then mode=$(< "$BASE/gate/pip"); fi
    for name in "${!PIP_@}"; do
        value=${!name}
        case $mode:$name in
            only:PIP_INDEX_URL | only:PIP_EXTRA_INDEX_URL) value='' ;;
            add:PIP_EXTRA_INDEX_URL) value+=" file://$BASE/cache/pip/simple" ;;
        esac
        if [[ $value ]]; then printf 'export %s=%q\n' "$name" "$value"; fi
    done
    # Have trees installed in place by a path instead of a finder. Python asks finders last: in an environment that sees
    # the system's packages, a library that came with one of them would be used instead of the tree.
    if [[ ! ${PIP_CONFIG_SETTINGS:-} ]]; then printf 'export PIP_CONFIG_SETTINGS=editable_mode=compat\n'; fi
    # For pip before 20.3, which takes the first that it finds of equal versions.
    if [[ -d $BASE/cache/pip ]]; then printf 'export PIP_FIND_LINKS=%q\n' "$BASE/cache/pip"; fi
}

as_user() {
    local user=$1 home
    shift
    cd /
    take_jobs_ways
    if (( EUID )); then
        sudo -n -H -u "$user" -- "$@"
    else
        home=$(getent passwd "$user")
        home=${home%:*}
        runuser -u "$user" -- env -i PATH="$PATH" LANG="${LANG:-C.UTF-8}" HOME="${home##*:}" USER="$user" "$@"
    fi
}

# --- devstack's settings ---

# Print the settings file that a devstack reads: local.conf, unless it knows only localrc.
settings_file() {
    local devstack=$1
    if grep -rqsF local.conf -- "$devstack"/{stack.sh,stackrc,functions,functions-common,inc,lib,tools} \
        || ! grep -qsw localrc -- "$devstack"/{stack.sh,stackrc,functions}; then
        printf '%s/local.conf\n' "$devstack"
    else
        printf '%s/localrc\n' "$devstack"
    fi
}

random() {
    od -An -v -N 12 -t x1 /dev/urandom | tr -d ' \n'
}

# Make one set of secrets for the run: an upgrade goes on with those of the old cloud.
make_secrets() {
    local name
    for name in ADMIN_PASSWORD DATABASE_PASSWORD RABBIT_PASSWORD SERVICE_PASSWORD SERVICE_TOKEN SWIFT_HASH; do
        SECRETS[$name]=$(random) || return
    done
    SECRETS[MYSQL_PASSWORD]=${SECRETS[DATABASE_PASSWORD]}  # older devstacks' name for it
}

# Save master's constraints for tempest, which is always master's: tox would download what the trees have.
save_tempest_constraints() {
    local requirements=$1/requirements ref=refs/remotes/origin/master
    rm -f -- "$1/$TEMPEST_CONSTRAINTS"
    if ! grep -qsF 'TEMPEST_VENV_UPPER_CONSTRAINTS:-master' -- "$1/devstack/stackrc" || [[ ! -d $requirements ]]; then return 0; fi
    if [[ $(isolated git -C "$requirements" symbolic-ref -q --short HEAD || true) == master ]]; then ref=HEAD; fi
    isolated git -C "$requirements" show "$ref:upper-constraints.txt" > "$1/$TEMPEST_CONSTRAINTS" || {
        rm -f -- "$1/$TEMPEST_CONSTRAINTS"
        log "$requirements: no constraints of master for tempest; devstack will fetch them"
    }
}

# write_settings DEVSTACK DEST: write devstack's settings into the one file that it reads, which only the stack user can
# read: first those that are there already, from hooks or an earlier run, then ours.
write_settings() {
    local devstack=$1 dest=$2 file theirs ours
    file=$(settings_file "$devstack")
    theirs=$(collect_theirs "$devstack" "$file")
    ours=$(print_block "$theirs" "$dest" "$file")
    rm -rf -- "$devstack/local.conf" "$devstack/localrc"
    (umask 077; printf '%s%s\n' "$theirs" "$ours" > "$file")
    check_localrc "$file"
    SETTINGS_FILES+=("$file")
    log "settings of devstack: $file"
}

# Print what others left in local.conf and localrc, without what this script wrote there before. devstack reads the
# localrc section of local.conf only if there is no localrc, and no line of local.conf before the first section. So one
# file gets all of it, in sections.
collect_theirs() {
    local devstack=$1 file=$2 name text
    for name in local.conf localrc; do
        if [[ ! -e $devstack/$name && ! -L $devstack/$name ]]; then continue; fi
        if [[ ! -f $devstack/$name || ! -r $devstack/$name ]]; then
            die 2 "$devstack/$name: expected a file that can be read"
        elif [[ $name == local.conf && $file == */localrc ]]; then
            die 2 "$devstack/local.conf: this devstack does not read it, expected localrc"
        fi
        text=$(sed -e $'1s/^\xef\xbb\xbf//' -e 's/\r$//' -e "/^$BEGIN\$/,/^$END\$/d" -- "$devstack/$name")
        if [[ $file == */local.conf && $name == localrc ]]; then
            log "$devstack/localrc: read as a section of local.conf"
            printf '[[local|localrc]]\n'
        elif [[ $file == */local.conf ]] && ! grep -m 1 -vE '^[[:blank:]]*(#|$)' <<< "$text" | grep -qE '^\[\[.+\|.*\]\]'; then
            printf '[[local|localrc]]\n'
        fi
        printf '%s\n' "$text"
    done
}

# Print what is to be added: our settings except those that are there, then the job's.
print_block() {
    local theirs=$1 dest=$2 file=$3 text
    printf '\n%s\n' "$BEGIN"
    if [[ $file == */local.conf ]]; then printf '[[local|localrc]]\n'; fi
    print_localrc "$theirs" "$dest"
    text=${DEVSTACK_LOCAL_CONFIG:-}
    if [[ ${DEVSTACK_LOCALCONF:-} ]]; then
        text+=$'\n'
        if [[ ! $DEVSTACK_LOCALCONF =~ ^[[:space:]]*\[\[ ]]; then text+=$'[[local|localrc]]\n'; fi
        text+=$DEVSTACK_LOCALCONF
    fi
    if [[ $file == */localrc && $'\n'$text == *$'\n[['* ]]; then
        die 2 "DEVSTACK_LOCAL_CONFIG: expected no sections, this devstack reads localrc"
    fi
    if [[ $text ]]; then printf '%s\n' "$text"; fi
    print_last "$dest" "$file"
    printf '%s\n' "$END"
}

print_localrc() {
    local theirs=$1 dest=$2 name given
    local -a settings=("DEST=$dest" "DATA_DIR=$BASE/data" "LOGDIR=$BASE/logs" "SCREEN_LOGDIR=$BASE/logs" VERBOSE=True LOG_COLOR=False
        ERROR_ON_CLONE=True RECLONE=no USE_SCREEN=False SWIFT_REPLICAS=1 NOVNC_FROM_PACKAGE=True ROOTSLEEP=0)
    for name in "${!SECRETS[@]}"; do settings+=("$name=${SECRETS[$name]}"); done
    if [[ -s $dest/$TEMPEST_CONSTRAINTS ]]; then settings+=("TEMPEST_VENV_UPPER_CONSTRAINTS=$dest/$TEMPEST_CONSTRAINTS"); fi
    theirs=$(localrc_of <<< "$theirs")
    for name in "${settings[@]}"; do
        given=${name%%=*}
        if [[ $given == @(DATABASE|MYSQL)_PASSWORD ]]; then given='(DATABASE|MYSQL)_PASSWORD'; fi
        if ! grep -qE "^[[:blank:]]*(export[[:blank:]]+)?$given=" <<< "$theirs"; then printf '%s\n' "$name"; fi
    done
    if [[ ${OVERRIDE_ENABLED_SERVICES:-} ]]; then
        print_services ENABLED_SERVICES= "$OVERRIDE_ENABLED_SERVICES"
    elif [[ ${ENABLED_SERVICES:-} ]]; then
        print_services ENABLED_SERVICES+=, "$ENABLED_SERVICES"
    fi
    if [[ ${DEVSTACK_GATE_VIRT_DRIVER:-} ]]; then printf 'VIRT_DRIVER=%s\n' "$DEVSTACK_GATE_VIRT_DRIVER"; fi
    if [[ ${DEVSTACK_GATE_LIBVIRT_TYPE:-} ]]; then printf 'LIBVIRT_TYPE=%s\n' "$DEVSTACK_GATE_LIBVIRT_TYPE"; fi
}

# print_services BEGINNING LIST: print the list as devstack's own parsers of localrc like it best: unquoted and without
# blanks, which they would take as part of a name.
print_services() {
    local -a names
    local list
    read -r -d '' -a names <<< "${2//,/ }" || true
    list=$(IFS=,; printf '%s' "${names[*]}")
    if [[ $list =~ ^[A-Za-z0-9_.,:+-]+$ ]]; then printf '%s%s\n' "$1" "$list"; else printf '%s%q\n' "$1" "$list"; fi
}

# Print what must hold whatever the job's own settings say, which may set both lists anew. devstack takes a library from
# the package index unless it is told to take the tree: it must take the trees with the change, and those that the job
# names. If tempest is to run, it must be set up.
print_last() {
    local dest=$1 file=$2 names
    names=$(list_libraries "$dest")
    if [[ ! $names && $DEVSTACK_GATE_TEMPEST != 1 ]]; then return 0; fi
    if [[ $file == */local.conf ]]; then printf '[[local|localrc]]\n'; fi
    if [[ $DEVSTACK_GATE_TEMPEST == 1 ]]; then printf 'ENABLED_SERVICES+=,tempest\n'; fi
    # shellcheck disable=SC2016  # expanded by devstack
    if [[ $names ]]; then printf 'if [[ ${LIBS_FROM_GIT:-} != ALL ]]; then LIBS_FROM_GIT=${LIBS_FROM_GIT:+$LIBS_FROM_GIT,}%s; fi\n' "$names"; fi
}

# list_libraries DEST: print names separated by commas. devstack until 2023 fails for a name that it does not install,
# so it is told only names that it or a plug-in knows.
list_libraries() {
    local dest=$1 change name
    local -a names=()
    read -r -d '' -a names <<< "${LIBS_FROM_GIT//,/ } ${DEVSTACK_PROJECT_FROM_GIT//,/ }" || true
    for change in "${CHANGES[@]}"; do
        name=${change%:*}
        if [[ ${name%/*} != "${dest##*/}" ]]; then continue; fi
        name=${name##*/}
        if [[ $name == @(devstack|devstack-gate|requirements|tempest|grenade) ]]; then continue; fi
        if ! grep -qsw check_libs_from_git -- "$dest"/devstack/{inc/python,functions*,stack.sh} \
            || grep -rqsF -e "GITREPO[\"$name\"]" -e "GITDIR[\"$name\"]" -- "$dest"/*/{stackrc,lib,devstack}; then
            names+=("$name")
        fi
    done
    if (( ${#names[@]} )); then
        printf '%s\n' "${names[@]##*/}" | awk '!seen[$0]++' | paste -sd, -
    fi
}

# Print the localrc sections of a local.conf, or the whole of a text without sections.
localrc_of() {
    awk 'BEGIN { ours = 1 } /^\[\[.+\|.*\]\]/ { ours = /^\[\[local\|localrc\]\]/; next } ours'
}

# Refuse a localrc that bash cannot read, which would leave devstack without a part of its settings.
check_localrc() {
    local file=$1 said
    if ! said=$(localrc_of < "$file" | bash -n 2>&1); then
        die 2 "$file: expected lines of bash: $(head -n 1 <<< "$said" | hide_secrets "$file" || true)"
    fi
}

# --- parts of the run ---

# step NAME: record what runs now, for the last line of the wrap script.
step() {
    log "$1"
    record_step "$1"
}

record_step() {
    if [[ -w $BASE/gate/step ]]; then printf '%s\n' "$1" > "$BASE/gate/step"; fi
}

# note WORDS: record what to say about the run besides that it passed; all notes are told in one line.
note() {
    local file=$BASE/gate/note
    if [[ -w $file ]]; then
        if [[ -s $file ]]; then printf '; ' >> "$file"; fi
        printf '%s' "$1" >> "$file"
    fi
}

# part NAME FILE FOLDER COMMAND...: run it there; if its status is not 0, the script ends with that. Its output goes to
# the file, and from there to the console without secrets: services that it starts may keep the file open.
part() {
    local name=$1 file=$2 folder=$3 pid rc=0
    shift 3
    step "$name"
    rm -f -- "$file"
    (umask 077; : > "$file")
    set -m  # gives the command a process group of its own, with SIGINT as usual
    (take_jobs_ways; cd -- "$folder" && exec "$@") >> "$file" 2>&1 < /dev/null &
    pid=$!
    set +m
    tail -n +1 -s 0.1 -f --pid="$pid" -- "$file" | hide_secrets "${SETTINGS_FILES[@]}" &
    wait "$pid" || rc=$?
    wait "$!" || true
    if (( rc )); then
        printf '%s: %s failed with %s\n' "${0##*/}" "$name" "$rc" >&2
        exit "$rc"
    fi
}

# Take sudo away from the stack user: the tests must pass without the rights that installing takes.
revoke_sudo() {
    if [[ ${DEVSTACK_GATE_REMOVE_STACK_SUDO:-1} == 0 ]]; then
        log 'the tests run with sudo: DEVSTACK_GATE_REMOVE_STACK_SUDO is 0'
        return
    fi
    if [[ -e $SUDOERS ]] || sudo -n true 2> /dev/null; then
        sudo -n rm -f -- "$SUDOERS"
        if sudo -n true 2> /dev/null; then log 'the tests run with sudo: something other than the gate allows it'; fi
    fi
}

# Run the exercises. exercise.sh ends with 0 also if it has skipped each of them, as for services that are not on.
run_exercises() {
    part exercise.sh "$NEW/exercise.txt" "$DEVSTACK" ./exercise.sh
    if grep -q '^SKIP ' "$NEW/exercise.txt" && ! grep -q '^PASS ' "$NEW/exercise.txt"; then note 'no exercise was run'; fi
}

runs_tempest() {
    [[ $DEVSTACK_GATE_TEMPEST == 1 && $DEVSTACK_GATE_TEMPEST_NOTESTS != 1 ]]
}

# Fill TEMPEST_ENVIRONMENT, which is tox's, and TEMPEST_ARGUMENTS.
choose_tempest_tests() {
    local expression
    local -a tests
    TEMPEST_ENVIRONMENT=smoke
    TEMPEST_ARGUMENTS=(--concurrency "${TEMPEST_CONCURRENCY:-$(nproc || true)}")
    if [[ ${DEVSTACK_GATE_TEMPEST_TESTS:-} ]]; then
        TEMPEST_ENVIRONMENT=all
        read -r -d '' -a tests <<< "${DEVSTACK_GATE_TEMPEST_TESTS}" || true
        tests=("${tests[@]%%\[*}")  # the ids of a test are no part of its name
        tests=("${tests[@]%,}")
        tests=("${tests[@]//./\\.}")
        expression=$(IFS='|'; printf '(%s)' "${tests[*]}")
        TEMPEST_ARGUMENTS=("$expression" "${TEMPEST_ARGUMENTS[@]}")
    elif [[ ${DEVSTACK_GATE_TEMPEST_REGEX:-} ]]; then
        TEMPEST_ENVIRONMENT=all
        TEMPEST_ARGUMENTS=("$DEVSTACK_GATE_TEMPEST_REGEX" "${TEMPEST_ARGUMENTS[@]}")
    elif [[ ${DEVSTACK_GATE_TEMPEST_ALL:-} == 1 ]]; then
        TEMPEST_ENVIRONMENT=all
        TEMPEST_ARGUMENTS=('.*' "${TEMPEST_ARGUMENTS[@]}")
    elif [[ ${DEVSTACK_GATE_TEMPEST_FULL:-} == 1 ]]; then
        TEMPEST_ENVIRONMENT=full
    fi
}

# Run tempest in the environment that devstack has made, with devstack's tox and its constraints: with others, tox makes it
# anew.
run_tempest() {
    choose_tempest_tests
    local constraints failed venv
    constraints=$(tempest_constraints)
    venv=$(devstack_setting DEVSTACK_VENV)
    if [[ $constraints ]]; then export UPPER_CONSTRAINTS_FILE=$constraints TOX_CONSTRAINTS_FILE=$constraints; fi
    if [[ ${TEMPEST_OS_TEST_TIMEOUT:-} ]]; then export OS_TEST_TIMEOUT=$TEMPEST_OS_TEST_TIMEOUT; fi
    PATH=${venv:+$venv/bin:}$PATH part "tempest $TEMPEST_ENVIRONMENT" "$NEW/tempest.txt" "$NEW/tempest" \
        tox -e "$TEMPEST_ENVIRONMENT" -- "${TEMPEST_ARGUMENTS[@]}"
    failed=$(count_tests "$NEW/tempest.txt" failed)
    if (( failed )); then
        printf '%s: tempest ended with 0, although %s of its tests failed\n' "${0##*/}" "$failed" >&2
        exit 1
    elif (( ! $(count_tests "$NEW/tempest.txt" ran || true) )); then
        log 'tempest ran no test'
        note 'tempest ran no test'
    else
        note_missing_tests "$NEW/tempest.txt"
    fi
}

# Note each test that the job names and that tempest did not run, since it does not know it or has skipped it.
note_missing_tests() {
    local name
    local -a names
    read -r -d '' -a names <<< "${DEVSTACK_GATE_TEMPEST_TESTS:-}" || true
    if ! grep -qE '^Ran:? [0-9]+ ' "$1"; then return 0; fi
    for name in "${names[@]%%\[*}"; do
        name=${name%,}
        if [[ $name ]] && ! NAME=$name awk 'index($0, ENVIRON["NAME"]) && / \.\.\. / && !/ \.\.\. (SKIP|skip)/ { ran = 1; exit }
            END { exit !ran }' "$1"; then note "no test $name was run"; fi
    done
}

# Print the constraints file of tempest's environment, as devstack tells tox; nothing if devstack has no such setting.
tempest_constraints() {
    local named
    named=$(devstack_setting TEMPEST_VENV_UPPER_CONSTRAINTS)
    if [[ $named == master ]]; then named=https://releases.openstack.org/constraints/upper/master; fi
    printf '%s\n' "$named"
}

# count_tests FILE ran|failed: print how many of tempest's tests did, by the summaries of stestr, or of testr and
# unittest; 0 if there is no summary.
count_tests() {
    awk -v what="$2" '
        /^Ran: [0-9]+ tests? in / { stestr = 1 }
        stestr && /^ - (Passed|Failed|Expected Fail|Unexpected Success): [0-9]+$/ { ran += $NF }
        stestr && /^ - (Failed|Unexpected Success): [0-9]+$/ { failed += $NF }
        /^Ran [0-9]+ (\([+-][0-9]+\) )?tests? in / { ran += $2 }
        /^(OK|FAILED|PASSED) \(.*skip(s|ped)=[0-9]/ { skipped = $0; sub(/.*skip(s|ped)=/, "", skipped); ran -= skipped }
        /^FAILED \(/ { failed++ }
        END { print (what == "ran" ? ran : failed) + 0 }' "$1"
}

run_grenade() {
    write_settings "$BASE/old/devstack" "$BASE/old"
    write_settings "$DEVSTACK" "$NEW"
    cat > "$NEW/grenade/localrc" <<EOT
BASE_RELEASE=old
BASE_RELEASE_DIR=$BASE/old
BASE_DEVSTACK_DIR=$BASE/old/devstack
TARGET_RELEASE=new
TARGET_RELEASE_DIR=$NEW
TARGET_DEVSTACK_DIR=$DEVSTACK
SAVE_DIR=$BASE/save
STACK_ROOT=$BASE
EOT
    # This script runs the tests on the upgraded cloud that the job asks for.
    if runs_tempest; then printf 'TARGET_RUN_SMOKE=False\n' >> "$NEW/grenade/localrc"; fi
    if [[ ${GRENADE_PLUGINRC:-} ]]; then printf '%s\n' "$GRENADE_PLUGINRC" >> "$NEW/grenade/pluginrc"; fi
    part grenade.sh "$NEW/grenade.txt" "$NEW/grenade" ./grenade.sh
}

main() {
    set -euo pipefail
    shopt -s inherit_errexit
    if [[ ! -f ${BASH_SOURCE[0]} ]]; then
        printf '%s: expected to be run as a file; bash reads it from somewhere else\n' devstack-vm-gate.sh >&2
        exit 2
    fi
    local owner
    HERE=$(readlink -f -- "${BASH_SOURCE[0]}")
    HERE=${HERE%/*}
    # shellcheck source=functions.sh
    . "$HERE/functions.sh"
    start_plainly "$@"
    leave_jobs_ways
    case ${1:-} in
        '') ;;
        -h | --help) usage; return 0 ;;
        --version) print_version; return ;;
        *) die 2 "unknown argument $1; see --help" ;;
    esac
    # shellcheck source=gate/settings.sh
    . "$HERE/gate/settings.sh"
    # shellcheck source=gate/git.sh
    . "$HERE/gate/git.sh"
    read_functions
    : "${BASE:=/opt/stack}"
    NEW=$BASE/new
    DEVSTACK=$NEW/devstack
    if [[ -w $BASE/gate/note ]]; then : > "$BASE/gate/note"; fi
    record_step settings
    check_names
    read_older_words
    check_tests
    if [[ -e $BASE/gate/step ]] && id -u stack > /dev/null 2>&1 && [[ $(id -un || true) != stack ]]; then
        give_trees_to_stack
    fi
    if [[ -d $DEVSTACK && ! -O $DEVSTACK ]]; then
        owner=$(stat -c %U -- "$DEVSTACK")
        become_owner "$owner" "$HERE/devstack-vm-gate.sh"
        return
    fi
    check_devstack
    make_secrets
    save_tempest_constraints "$NEW"
    if [[ $DEVSTACK_GATE_GRENADE == 1 ]]; then
        run_grenade
    else
        write_settings "$DEVSTACK" "$NEW"
        part stack.sh "$NEW/devstacklog.txt" "$DEVSTACK" ./stack.sh
    fi
    check_installed
    if [[ $DEVSTACK_GATE_UNSTACK == 1 ]]; then part unstack.sh "$NEW/unstack.txt" "$DEVSTACK" ./unstack.sh; fi
    revoke_sudo
    if [[ $DEVSTACK_GATE_EXERCISES == 1 ]]; then run_exercises; fi
    if runs_tempest; then
        run_tempest
    elif [[ $DEVSTACK_GATE_EXERCISES != 1 && $DEVSTACK_GATE_GRENADE != 1 ]]; then
        note 'no test was run'
    fi
    record_step "$LAST_STEP"
}

# Check, believing nobody, that what is installed in devstack's environments comes from the trees with the change.
check_installed() {
    local venv
    local -a libraries=()
    venv=$(devstack_setting DEVSTACK_VENV)
    read -r -d '' -a libraries <<< "${LIBS_FROM_GIT//,/ } ${DEVSTACK_PROJECT_FROM_GIT//,/ }" || true
    libraries=("${libraries[@]##*/}")
    part 'check of what is installed' "$NEW/installed.txt" "$NEW" \
        python3 -I "$HERE/gate/installed.py" "${libraries[@]/#/--library=}" "${CHANGES[@]/#/--change=}" "$BASE" ${venv:+"$venv"}
    note_not_installed
}

# Note each change that was not installed, such as that of a service that is not on: it has passed nothing. What
# devstack itself reads has passed: an enabled plug-in, even one with another name than its project's; but only the
# folder devstack/ of one that is a Python distribution.
note_not_installed() {
    local words name blank='[[:blank:]]+' plugin
    while IFS= read -r words; do
        name=${words%% *}
        plugin="^[[:blank:]]*enable_plugin${blank}($name${blank}|[^[:blank:]]+${blank}[^[:blank:]]*/$name(\\.git)?/?([[:blank:]]|\$))"
        if ! grep -qsE "$plugin" -- "${SETTINGS_FILES[@]}"; then
            note "$words"
        elif [[ $words == *' was not installed' ]] && ! isolated changes_only "$NEW/$name" devstack; then
            note "$words"
        fi
    done < <(list_untested "$NEW/installed.txt" || true)
    while IFS= read -r name; do note "$name was not taken from its tree"; done \
        < <(sed -n 's/^NOT FROM ITS TREE: \([^:]*\): .*/\1/p' "$NEW/installed.txt" || true)
}

# changes_only TREE FOLDER: whether all of a tree's change is in a folder of it.
changes_only() {
    local tree=$1 ref change begin
    ref=$(< "$tree/.git/gate-ref") && change=$(< "$tree/.git/gate-change") || return
    begin=$(begin_of "$tree" "$ref" "$change") || return
    git -C "$tree" diff --quiet --no-ext-diff "$begin" "$change" -- . ":(exclude)$2"
}

# devstack_setting NAME: print its value as devstack itself reads its settings; nothing if it has no such setting.
devstack_setting() {
    local value=''
    value=$(bash -c 'cd -- "$1" && . ./stackrc > /dev/null 2>&1; printf "\n%s\n" "${!2:-}"' bash "$DEVSTACK" "$1" 2> /dev/null) || true
    printf '%s\n' "${value##*$'\n'}"
}

if [[ ${BASH_SOURCE[0]:-$0} == "$0" ]]; then main "$@"; exit; fi
