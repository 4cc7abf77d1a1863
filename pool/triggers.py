"""The triggers of vm.db: they record what happens, in the transaction of the move, whoever makes it.

They belong to the schema version that made them: to change one, write a migration that drops and makes it again.
"""

from collections.abc import Sequence

NOW = "CAST(strftime('%s', 'now') AS INTEGER)"
# Upper bounds of the buckets in tally: seconds from the row to READY, minutes of builds.
READY_SECONDS = (10, 20, 30, 45, 60, 90, 120, 180, 300, 600, 900, 1800)
BUILD_MINUTES = (1, 5, 10, 15, 20, 30, 40, 50, 60, 75, 90, 120, 180)


def of_events(table: str, id_column: str, hold_reason: str, more: str = "") -> str:
    """Return the triggers that write an event when a row of a table appears, moves, or goes, and later its name.

    The reason is state_reason if the move wrote that, else the row's error or hold_reason. more: a further column to
    copy from the row into the event.
    """
    def event(row: str, from_state: str, to_state: str, seconds: str, reason: str) -> str:
        return f"""INSERT INTO event (
                time, {id_column}, node_name, provider, image, from_state, to_state, seconds,
                reason{more and f", {more}"})
            SELECT {NOW}, {row}.id, {row}.name, provider.name, base_image.name, {from_state}, {to_state}, {seconds},
                {reason}{more and f", {row}.{more}"}
            FROM base_image JOIN provider ON provider.id = provider_id WHERE base_image.id = {row}.base_image_id"""

    of_state = f"CASE NEW.state WHEN 'ERROR' THEN NEW.error WHEN 'HOLD' THEN {hold_reason} END"
    given = "CASE WHEN NEW.state_reason IS NOT OLD.state_reason THEN NEW.state_reason END"
    stayed = f"max({NOW} - OLD.state_time, 0)"
    return f"""
    CREATE TRIGGER {table}_came AFTER INSERT ON {table} BEGIN
        {event("NEW", "NULL", "NEW.state", "NULL", f"coalesce(NEW.state_reason, {of_state})")};
    END;
    CREATE TRIGGER {table}_named AFTER UPDATE OF name ON {table} WHEN OLD.name IS NULL BEGIN
        UPDATE event SET node_name = NEW.name WHERE node_name IS NULL AND {id_column} = NEW.id;
    END;
    CREATE TRIGGER {table}_moved AFTER UPDATE OF state ON {table} WHEN OLD.state != NEW.state BEGIN
        {event("NEW", "OLD.state", "NEW.state", stayed, f"coalesce({given}, {of_state})")};
    END;
    CREATE TRIGGER {table}_went AFTER DELETE ON {table} BEGIN
        {event("OLD", "OLD.state", "NULL", stayed, "NULL")};
    END;
    """


def of_tally() -> str:
    """Return the triggers that count moves, times to READY, and builds with their minutes.

    These counts only grow, even when old events are pruned: metrics.prom is made of them.
    """
    ended = "NEW.end_time IS NOT NULL AND NEW.by_person IS NOT 1"
    timed = f"{ended} AND NEW.start_time IS NOT NULL"
    ends = {"came": "AFTER INSERT ON result WHEN",
            "ended": "AFTER UPDATE OF end_time ON result WHEN OLD.end_time IS NULL AND"}
    whole = [_counter("event_counted", "AFTER INSERT ON event",
                      "CASE WHEN NEW.machine_id IS NULL THEN 'snapshot' ELSE 'move' END",
                      "coalesce(NEW.from_state, '') || '>' || coalesce(NEW.to_state, '')"),
             _counter("ready_counted", "AFTER INSERT ON event WHEN NEW.from_state = 'BUILDING' "
                      "AND NEW.to_state = 'READY' AND NEW.machine_id IS NOT NULL",
                      "'ready'", _bucket("NEW.seconds", READY_SECONDS), "NEW.seconds")]
    for name, when in ends.items():
        whole += [_counter(f"result_{name}_counted", f"{when} {ended}", "'build'", "coalesce(NEW.result, 'UNKNOWN')"),
                  _counter(f"minutes_{name}_counted", f"{when} {timed}", "'minutes'",
                           _bucket("(NEW.end_time - NEW.start_time) / 60.0", BUILD_MINUTES),
                           "max(NEW.end_time - NEW.start_time, 0)")]
    return "".join(whole)


def of_environments() -> str:
    """Return the triggers of test environments, and the trigger that counts events, in its form since then.

    They release an environment with its machine, refuse one to a machine that is not in use, write an event for each
    move, and delete environments that have left the providers file.
    """
    let_go = f"""UPDATE test_environment SET state = CASE WHEN reset IS NULL THEN 'FREE' ELSE 'RESETTING' END,
            state_time = {NOW}, machine_id = NULL, state_reason = {{reason}} WHERE machine_id = {{row}}.id;
        DELETE FROM environment_waiter WHERE machine_id = {{row}}.id"""
    gone = "DELETE FROM test_environment WHERE id = NEW.id AND active = 0 AND state IN ('FREE', 'BROKEN')"

    def event(row: str, machine: str, from_state: str, to_state: str, seconds: str, reason: str) -> str:
        return f"""INSERT INTO event (
                time, environment, node_name, provider, image, from_state, to_state, seconds, reason)
            SELECT {NOW}, {row}.name, machine.name, coalesce(provider.name, ''), coalesce(base_image.name, ''),
                {from_state}, {to_state}, {seconds}, {reason}
            FROM (SELECT {machine} AS had) LEFT JOIN machine ON machine.id = had
                LEFT JOIN base_image ON base_image.id = base_image_id LEFT JOIN provider ON provider.id = provider_id"""

    stayed = f"max({NOW} - OLD.state_time, 0)"
    had = "coalesce(NEW.machine_id, OLD.machine_id)"
    return f"""
    CREATE TRIGGER environment_let_go AFTER UPDATE OF state ON machine WHEN NEW.state NOT IN ('USED', 'HOLD') BEGIN
        {let_go.format(row="NEW", reason="coalesce(NEW.name, 'its machine') || ' is ' || NEW.state")};
    END;
    CREATE TRIGGER environment_lost BEFORE DELETE ON machine BEGIN
        {let_go.format(row="OLD", reason="coalesce(OLD.name, 'its machine') || ' is gone'")};
    END;
    CREATE TRIGGER environment_refused BEFORE UPDATE ON test_environment
        WHEN NEW.machine_id IS NOT NULL AND NEW.machine_id IS NOT OLD.machine_id AND NOT EXISTS (
            SELECT 1 FROM machine WHERE id = NEW.machine_id AND state IN ('USED', 'HOLD')) BEGIN
        SELECT RAISE(ABORT, 'only a machine that is USED or HOLD can have a test environment');
    END;
    CREATE TRIGGER environment_came AFTER INSERT ON test_environment BEGIN
        {event("NEW", "NEW.machine_id", "NULL", "NEW.state", "NULL", "NEW.state_reason")};
    END;
    CREATE TRIGGER environment_moved AFTER UPDATE OF state, machine_id, active ON test_environment BEGIN
        {event("NEW", had, "OLD.state", "NEW.state", stayed, "NEW.state_reason")}
            WHERE OLD.state != NEW.state OR OLD.machine_id IS NOT NEW.machine_id;
        {gone};
    END;
    CREATE TRIGGER environment_went AFTER DELETE ON test_environment BEGIN
        {event("OLD", "OLD.machine_id", "OLD.state", "NULL", stayed, "'it left the providers file'")};
    END;
    DROP TRIGGER event_counted;
    """ + _counter("event_counted", "AFTER INSERT ON event",
                   "CASE WHEN NEW.environment IS NOT NULL THEN 'environment' WHEN NEW.machine_id IS NULL "
                   "THEN 'snapshot' ELSE 'move' END",
                   "coalesce(NEW.from_state, '') || '>' || coalesce(NEW.to_state, '')")


def of_groups() -> str:
    """Return the triggers that move subnodes with their lead, and those that write and count events, in their new form.

    A subnode in another state than its lead failed in its boot, and goes on alone. A subnode's moves are counted apart,
    since no build could have it.
    """
    dropped = [f"machine_{what}" for what in ("came", "named", "moved", "went")] + ["event_counted", "ready_counted"]
    return "".join(f"DROP TRIGGER {name};\n" for name in dropped) + f"""
    CREATE TRIGGER members_moved AFTER UPDATE OF state ON machine WHEN NEW.lead_id IS NULL AND OLD.state != NEW.state
    BEGIN
        UPDATE machine SET state = NEW.state, state_time = NEW.state_time, error = NEW.error,
            hold_reason = NEW.hold_reason, hold_until = NEW.hold_until,
            state_reason = 'with ' || coalesce(NEW.name, 'its machine')
            WHERE lead_id = NEW.id AND state = OLD.state;
    END;
    CREATE TRIGGER members_lost AFTER DELETE ON machine WHEN OLD.lead_id IS NULL BEGIN
        UPDATE machine SET state = 'DELETE', state_time = {NOW},
            state_reason = coalesce(OLD.name, 'its machine') || ' is gone'
            WHERE lead_id = OLD.id AND state != 'DELETE';
    END;
    """ + of_events("machine", "machine_id", "NEW.hold_reason", "lead_id") + _counter(
        "event_counted", "AFTER INSERT ON event",
        "CASE WHEN NEW.environment IS NOT NULL THEN 'environment' WHEN NEW.machine_id IS NULL THEN 'snapshot' "
        "WHEN NEW.lead_id IS NOT NULL THEN 'subnode' ELSE 'move' END",
        "coalesce(NEW.from_state, '') || '>' || coalesce(NEW.to_state, '')") + _counter(
        "ready_counted", "AFTER INSERT ON event WHEN NEW.from_state = 'BUILDING' AND NEW.to_state = 'READY' "
        "AND NEW.machine_id IS NOT NULL AND NEW.lead_id IS NULL",
        "'ready'", _bucket("NEW.seconds", READY_SECONDS), "NEW.seconds")


def _bucket(value: str, bounds: Sequence[int]) -> str:
    """Return SQL for the first bound that a value does not exceed, as text; '+Inf' beyond the last one."""
    return f"CASE {' '.join(f'''WHEN {value} <= {bound} THEN '{bound}' ''' for bound in bounds)} ELSE '+Inf' END"


def _counter(name: str, when: str, what: str, key: str, total: str = "0") -> str:
    """Return a trigger that counts a row in tally, under what and key, and adds up total; these three are SQL."""
    return f"""
    CREATE TRIGGER {name} {when} BEGIN
        INSERT INTO tally (what, provider, image, key, count, total)
            VALUES ({what}, coalesce(NEW.provider, ''), coalesce(NEW.image, ''), {key}, 1, {total})
            ON CONFLICT (what, provider, image, key) DO UPDATE SET count = count + 1, total = total + excluded.total;
    END;
    """
