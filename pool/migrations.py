"""The schema of vm.db, one script for each version; PRAGMA user_version counts the scripts that have run.

A released script never changes: databases exist that it has made. PostgreSQL runs them as dialect.py translates them.
Machine ids are never used again (AUTOINCREMENT), because the names of servers and nodes contain them.
"""

from pool import triggers

_STATE_CHECK = "CHECK (state IN ('BUILDING', 'READY', 'USED', 'ERROR', 'HOLD', 'DELETE'))"

MIGRATIONS = (
    f"""
    CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE provider (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, cloud TEXT NOT NULL, region TEXT,
        max_servers INTEGER NOT NULL CHECK (max_servers >= 0), boot_timeout INTEGER NOT NULL,
        max_concurrency INTEGER NOT NULL, calls_per_second REAL, networks TEXT NOT NULL, floating_ips TEXT NOT NULL,
        floating_ip_network TEXT, address TEXT NOT NULL, ssh_port INTEGER NOT NULL, security_groups TEXT NOT NULL,
        availability_zones TEXT NOT NULL, active INTEGER NOT NULL DEFAULT 1);
    CREATE TABLE base_image (
        id INTEGER PRIMARY KEY AUTOINCREMENT, provider_id INTEGER NOT NULL REFERENCES provider,
        name TEXT NOT NULL, external_id TEXT NOT NULL, min_ready INTEGER NOT NULL CHECK (min_ready >= 0),
        min_ram INTEGER NOT NULL, flavor TEXT, username TEXT, user_data TEXT, max_ready_age INTEGER,
        active INTEGER NOT NULL DEFAULT 1, UNIQUE (provider_id, name));
    CREATE TABLE snapshot_image (
        id INTEGER PRIMARY KEY AUTOINCREMENT, base_image_id INTEGER NOT NULL REFERENCES base_image,
        name TEXT NOT NULL, version INTEGER NOT NULL, external_id TEXT, server_external_id TEXT,
        state TEXT NOT NULL {_STATE_CHECK}, state_time INTEGER NOT NULL, error TEXT);
    CREATE TABLE machine (
        id INTEGER PRIMARY KEY AUTOINCREMENT, base_image_id INTEGER NOT NULL REFERENCES base_image,
        snapshot_image_id INTEGER REFERENCES snapshot_image ON DELETE SET NULL,
        external_id TEXT, name TEXT, jenkins_name TEXT, ip TEXT, user TEXT, host_key TEXT,
        state TEXT NOT NULL {_STATE_CHECK}, state_time INTEGER NOT NULL, error TEXT,
        hold_reason TEXT, hold_until INTEGER, delete_time INTEGER);
    CREATE INDEX machine_base_image ON machine (base_image_id, state);
    CREATE INDEX machine_name ON machine (name);
    CREATE TABLE result (
        id INTEGER PRIMARY KEY AUTOINCREMENT, base_image_id INTEGER REFERENCES base_image ON DELETE SET NULL,
        machine_id INTEGER NOT NULL, node_name TEXT, jenkins_job_name TEXT, jenkins_build_number INTEGER,
        gerrit_change_number INTEGER, gerrit_patchset_number INTEGER,
        start_time INTEGER, end_time INTEGER, result TEXT);
    CREATE INDEX result_machine ON result (machine_id);
    CREATE VIEW pool AS
        SELECT provider.name AS provider, base_image.name AS image, min_ready,
            coalesce(sum(state = 'READY'), 0) AS ready, coalesce(sum(state = 'BUILDING'), 0) AS building,
            coalesce(sum(state = 'USED'), 0) AS used, coalesce(sum(state = 'ERROR'), 0) AS error,
            coalesce(sum(state = 'HOLD'), 0) AS hold, coalesce(sum(state = 'DELETE'), 0) AS "delete", max_servers
        FROM provider JOIN base_image ON base_image.provider_id = provider.id
            LEFT JOIN machine ON machine.base_image_id = base_image.id
        GROUP BY base_image.id ORDER BY provider.name, base_image.name;
    CREATE VIEW node AS
        SELECT provider, image, name, ip, state,
            CASE WHEN age < 120 THEN age || ' s' WHEN age < 7200 THEN (age / 60) || ' min'
                 WHEN age < 172800 THEN (age / 3600) || ' h' ELSE (age / 86400) || ' days' END AS age,
            hold_reason
        FROM (SELECT provider.name AS provider, base_image.name AS image, machine.name, ip, state, hold_reason,
                  max(CAST(strftime('%s', 'now') AS INTEGER) - state_time, 0) AS age, machine.id AS id
              FROM machine JOIN base_image ON machine.base_image_id = base_image.id
                  JOIN provider ON base_image.provider_id = provider.id)
        ORDER BY provider, image, id;
    """,
    # Until when the server of a failed image build is kept for a person.
    "ALTER TABLE snapshot_image ADD COLUMN keep_until INTEGER",
    # How an image type boots, whose snapshot it uses, and when the create of a machine's server was sent. When Jenkins
    # was first seen to have a machine's agent, and since when it lacks the agent; how many ready machines of an image
    # type were lost in a row, why, and what they were made of.
    """
    ALTER TABLE base_image ADD COLUMN config_drive INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE base_image ADD COLUMN boot_from_volume INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE base_image ADD COLUMN volume_size INTEGER;
    ALTER TABLE base_image ADD COLUMN template TEXT;
    ALTER TABLE base_image ADD COLUMN ready_script TEXT;
    ALTER TABLE machine ADD COLUMN create_time INTEGER;
    ALTER TABLE machine ADD COLUMN online_time INTEGER;
    ALTER TABLE machine ADD COLUMN absent_time INTEGER;
    ALTER TABLE base_image ADD COLUMN deaths INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE base_image ADD COLUMN death TEXT;
    ALTER TABLE base_image ADD COLUMN death_of TEXT;
    """,
    # The hash of a machine's secret, with which its build takes it; and whether a person has a machine. Open results
    # without a job, from before this column, count as a person's.
    """
    ALTER TABLE machine ADD COLUMN take_hash TEXT;
    ALTER TABLE result ADD COLUMN by_person INTEGER;
    UPDATE result SET by_person = 1 WHERE jenkins_job_name IS NULL AND end_time IS NULL;
    """,
    # What has happened: triggers write it in the transaction of the move, so nobody can forget it, not even a person
    # with sqlite3. Names as text outlive the rows; tally keeps its counts when old events are pruned.
    f"""
    CREATE TABLE event (
        id INTEGER PRIMARY KEY, time INTEGER NOT NULL, machine_id INTEGER, snapshot_id INTEGER, node_name TEXT,
        provider TEXT NOT NULL, image TEXT NOT NULL, from_state TEXT, to_state TEXT, seconds INTEGER, reason TEXT);
    CREATE INDEX event_time ON event (time);
    CREATE INDEX event_node ON event (node_name);
    CREATE INDEX event_provider ON event (provider, time);
    CREATE TABLE tally (
        what TEXT NOT NULL, provider TEXT NOT NULL, image TEXT NOT NULL, key TEXT NOT NULL,
        count INTEGER NOT NULL, total INTEGER NOT NULL, PRIMARY KEY (what, provider, image, key)) WITHOUT ROWID;
    CREATE TABLE autohold (
        id INTEGER PRIMARY KEY AUTOINCREMENT, job TEXT NOT NULL, change INTEGER, count INTEGER NOT NULL,
        remaining INTEGER NOT NULL CHECK (remaining >= 0), hours REAL, reason TEXT NOT NULL, ssh_key TEXT,
        made INTEGER NOT NULL);
    ALTER TABLE machine ADD COLUMN state_reason TEXT;
    ALTER TABLE snapshot_image ADD COLUMN state_reason TEXT;
    ALTER TABLE result ADD COLUMN provider TEXT;
    ALTER TABLE result ADD COLUMN image TEXT;
    ALTER TABLE result ADD COLUMN kind TEXT;
    ALTER TABLE result ADD COLUMN phase TEXT;
    ALTER TABLE result ADD COLUMN reason TEXT;
    ALTER TABLE result ADD COLUMN known_failure TEXT;
    ALTER TABLE result ADD COLUMN minutes REAL;
    ALTER TABLE result ADD COLUMN url TEXT;
    CREATE INDEX result_node ON result (node_name);
    CREATE INDEX result_end ON result (end_time);
    UPDATE result SET image = (SELECT name FROM base_image WHERE id = base_image_id), provider = (
        SELECT provider.name FROM base_image JOIN provider ON provider.id = provider_id
        WHERE base_image.id = base_image_id);
    INSERT INTO event (time, machine_id, node_name, provider, image, to_state, reason)
        SELECT state_time, machine.id, machine.name, provider.name, base_image.name, state,
            coalesce(error, hold_reason, 'when vm.db began to keep its history')
        FROM machine JOIN base_image ON base_image.id = base_image_id JOIN provider ON provider.id = provider_id;
    INSERT INTO event (time, snapshot_id, node_name, provider, image, to_state, reason)
        SELECT state_time, snapshot_image.id, snapshot_image.name, provider.name, base_image.name, state,
            coalesce(error, 'when vm.db began to keep its history')
        FROM snapshot_image JOIN base_image ON base_image.id = base_image_id JOIN provider ON provider.id = provider_id;
    {triggers.of_events("machine", "machine_id", "NEW.hold_reason")}
    {triggers.of_events("snapshot_image", "snapshot_id", "NULL")}
    {triggers.of_tally()}
    """,
    # What all providers together should have of an image type, and which of them can give machines now.
    """
    CREATE TABLE label (
        name TEXT PRIMARY KEY, min_ready INTEGER NOT NULL CHECK (min_ready >= 0), max_ready INTEGER NOT NULL,
        demand TEXT NOT NULL, spread TEXT NOT NULL, schedule TEXT NOT NULL);
    ALTER TABLE provider ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE provider ADD COLUMN paused INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE provider ADD COLUMN down_since INTEGER;
    ALTER TABLE provider ADD COLUMN on_trial INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE provider ADD COLUMN full_until INTEGER;
    """,
    # Test environments, who waits for one in which order, and which build had which. The lock is the row: triggers
    # release it with the machine, whoever moves or deletes that.
    f"""
    CREATE TABLE test_environment (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, images TEXT NOT NULL, providers TEXT NOT NULL,
        data TEXT NOT NULL, reset TEXT, state TEXT NOT NULL CHECK (state IN ('FREE', 'LOCKED', 'RESETTING', 'BROKEN')),
        state_time INTEGER NOT NULL, state_reason TEXT, machine_id INTEGER UNIQUE, locks INTEGER NOT NULL DEFAULT 0,
        active INTEGER NOT NULL DEFAULT 1, CHECK ((state = 'LOCKED') = (machine_id IS NOT NULL)));
    CREATE TABLE environment_waiter (
        id INTEGER PRIMARY KEY AUTOINCREMENT, machine_id INTEGER NOT NULL UNIQUE, since INTEGER NOT NULL);
    ALTER TABLE base_image ADD COLUMN test_environment INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE result ADD COLUMN environment TEXT;
    ALTER TABLE event ADD COLUMN environment TEXT;
    CREATE INDEX result_environment ON result (environment) WHERE environment IS NOT NULL;
    CREATE INDEX event_environment ON event (environment) WHERE environment IS NOT NULL;
    {triggers.of_environments()}
    """,
    # Several Jenkins: the one that a machine belongs to, by the NAME of its section [jenkins NAME].
    "ALTER TABLE machine ADD COLUMN jenkins TEXT NOT NULL DEFAULT ''",
    # Groups of machines: the subnodes of a machine are rows that name it as their lead, and triggers move them with it.
    # The views show them beside it, and never count them as machines that a build could have.
    f"""
    ALTER TABLE base_image ADD COLUMN subnodes INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE machine ADD COLUMN lead_id INTEGER;
    ALTER TABLE event ADD COLUMN lead_id INTEGER;
    CREATE INDEX machine_lead ON machine (lead_id) WHERE lead_id IS NOT NULL;
    {triggers.of_groups()}
    DROP VIEW pool;
    DROP VIEW node;
    CREATE VIEW pool AS
        SELECT provider.name AS provider, base_image.name AS image, min_ready,
            coalesce(sum(state = 'READY'), 0) AS ready, coalesce(sum(state = 'BUILDING'), 0) AS building,
            coalesce(sum(state = 'USED'), 0) AS used, coalesce(sum(state = 'ERROR'), 0) AS error,
            coalesce(sum(state = 'HOLD'), 0) AS hold, coalesce(sum(state = 'DELETE'), 0) AS "delete", max_servers,
            subnodes
        FROM provider JOIN base_image ON base_image.provider_id = provider.id
            LEFT JOIN machine ON machine.base_image_id = base_image.id AND lead_id IS NULL
        GROUP BY base_image.id ORDER BY provider.name, base_image.name;
    CREATE VIEW node AS
        SELECT provider, image, name, ip, state,
            CASE WHEN age < 120 THEN age || ' s' WHEN age < 7200 THEN (age / 60) || ' min'
                 WHEN age < 172800 THEN (age / 3600) || ' h' ELSE (age / 86400) || ' days' END AS age,
            hold_reason, lead
        FROM (SELECT provider.name AS provider, base_image.name AS image, machine.name, machine.ip, machine.state,
                  machine.hold_reason, coalesce(lead.name, CAST(machine.lead_id AS TEXT)) AS lead,
                  max(CAST(strftime('%s', 'now') AS INTEGER) - machine.state_time, 0) AS age,
                  coalesce(machine.lead_id, machine.id) AS "group", machine.id AS id
              FROM machine JOIN base_image ON machine.base_image_id = base_image.id
                  JOIN provider ON base_image.provider_id = provider.id
                  LEFT JOIN machine AS lead ON lead.id = machine.lead_id)
        ORDER BY provider, image, "group", id;
    """,
    # For `vmdatabase.py history --provider` and `--image`, which would otherwise scan the rows of years.
    """
    CREATE INDEX event_image ON event (image, time);
    CREATE INDEX result_provider ON result (provider);
    CREATE INDEX result_image ON result (image);
    """,
)
