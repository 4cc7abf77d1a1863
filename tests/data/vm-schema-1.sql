BEGIN TRANSACTION;
CREATE TABLE base_image (
        id INTEGER PRIMARY KEY AUTOINCREMENT, provider_id INTEGER NOT NULL REFERENCES provider,
        name TEXT NOT NULL, external_id TEXT NOT NULL, min_ready INTEGER NOT NULL CHECK (min_ready >= 0),
        min_ram INTEGER NOT NULL, flavor TEXT, username TEXT, user_data TEXT, max_ready_age INTEGER,
        active INTEGER NOT NULL DEFAULT 1, UNIQUE (provider_id, name));
INSERT INTO "base_image" VALUES(1,1,'noble','Debian 12',2,512,NULL,NULL,NULL,NULL,1);
CREATE TABLE machine (
        id INTEGER PRIMARY KEY AUTOINCREMENT, base_image_id INTEGER NOT NULL REFERENCES base_image,
        snapshot_image_id INTEGER REFERENCES snapshot_image ON DELETE SET NULL,
        external_id TEXT, name TEXT, jenkins_name TEXT, ip TEXT, user TEXT, host_key TEXT,
        state TEXT NOT NULL CHECK (state IN ('BUILDING', 'READY', 'USED', 'ERROR', 'HOLD', 'DELETE')), state_time INTEGER NOT NULL, error TEXT,
        hold_reason TEXT, hold_until INTEGER, delete_time INTEGER);
INSERT INTO "machine" VALUES(1,1,1,'server-3','devstack-noble-one-1','devstack-noble-one-1','192.0.2.1','jenkins','ssh-ed25519 AAAA','HOLD',1700001000,NULL,'bug 1; a look',NULL,NULL);
CREATE TABLE provider (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, cloud TEXT NOT NULL, region TEXT,
        max_servers INTEGER NOT NULL CHECK (max_servers >= 0), boot_timeout INTEGER NOT NULL,
        max_concurrency INTEGER NOT NULL, calls_per_second REAL, networks TEXT NOT NULL, floating_ips TEXT NOT NULL,
        floating_ip_network TEXT, address TEXT NOT NULL, ssh_port INTEGER NOT NULL, security_groups TEXT NOT NULL,
        availability_zones TEXT NOT NULL, active INTEGER NOT NULL DEFAULT 1);
INSERT INTO "provider" VALUES(1,'one','pocket-a',NULL,10,900,8,NULL,'["private"]','auto',NULL,'public-v4',22,'[]','[]',1);
CREATE TABLE result (
        id INTEGER PRIMARY KEY AUTOINCREMENT, base_image_id INTEGER REFERENCES base_image ON DELETE SET NULL,
        machine_id INTEGER NOT NULL, node_name TEXT, jenkins_job_name TEXT, jenkins_build_number INTEGER,
        gerrit_change_number INTEGER, gerrit_patchset_number INTEGER,
        start_time INTEGER, end_time INTEGER, result TEXT);
INSERT INTO "result" VALUES(1,1,1,'devstack-noble-one-1','gate-nova',7,NULL,NULL,1700001000,1700002000,'FAILURE');
CREATE TABLE setting (name TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "setting" VALUES('pool','b86473a9-a579-4d51-ae11-6514028df466');
CREATE TABLE snapshot_image (
        id INTEGER PRIMARY KEY AUTOINCREMENT, base_image_id INTEGER NOT NULL REFERENCES base_image,
        name TEXT NOT NULL, version INTEGER NOT NULL, external_id TEXT, server_external_id TEXT,
        state TEXT NOT NULL CHECK (state IN ('BUILDING', 'READY', 'USED', 'ERROR', 'HOLD', 'DELETE')), state_time INTEGER NOT NULL, error TEXT);
INSERT INTO "snapshot_image" VALUES(1,1,'devstack-noble-1700000000.template.openstack.org',1700000000,'image-1','server-1','READY',1700000900,NULL);
INSERT INTO "snapshot_image" VALUES(2,1,'devstack-noble-1700086400.template.openstack.org',1700086400,NULL,'server-2','ERROR',1700086500,'no such package');
CREATE INDEX machine_base_image ON machine (base_image_id, state);
CREATE INDEX machine_name ON machine (name);
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
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('provider',1);
INSERT INTO "sqlite_sequence" VALUES('base_image',1);
INSERT INTO "sqlite_sequence" VALUES('snapshot_image',2);
INSERT INTO "sqlite_sequence" VALUES('machine',1);
INSERT INTO "sqlite_sequence" VALUES('result',1);
COMMIT;
PRAGMA user_version = 1;
