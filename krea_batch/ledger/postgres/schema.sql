-- The ledger of a batch in PostgreSQL, in a schema of its own. Version 2.
-- Instants are seconds since 1970 (UTC). The tables are those of krea_batch/ledger/sqlite/schema.sql, which says what
-- their columns mean. Numbers are given by the statements that insert rows, not by sequences, so that they have no gaps.
-- Texts are compared byte by byte, as SQLite does.

CREATE TABLE ledger_version (
    singleton integer PRIMARY KEY CHECK (singleton = 1),
    version   integer NOT NULL
);
INSERT INTO ledger_version VALUES (1, 2);

-- Each process that has opened the ledger for changes. After a commit whose answer was lost, `commit_no` says whether
-- it was made.
CREATE TABLE writers (
    writer_no bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    opened_at timestamptz NOT NULL DEFAULT now(),
    commit_no bigint      NOT NULL DEFAULT 0
);

CREATE TABLE runs (
    run_no        bigint PRIMARY KEY,
    worker        text COLLATE "C" NOT NULL DEFAULT '',
    process_lock  text COLLATE "C" NOT NULL DEFAULT '',
    started_at    double precision NOT NULL,
    ended_at      double precision,
    beat          bigint  NOT NULL DEFAULT 0,
    fenced        integer NOT NULL DEFAULT 0,
    charged       integer NOT NULL DEFAULT 0,
    server_errors integer NOT NULL DEFAULT 0,
    reserved      integer NOT NULL DEFAULT 0,
    gateway       text COLLATE "C" NOT NULL,
    version       text COLLATE "C" NOT NULL,
    rate_per_s    double precision,
    max_charges   bigint,
    count_server_errors integer NOT NULL DEFAULT 0,
    expected_jobs bigint,
    results_bytes bigint
);

CREATE TABLE jobs (
    job_no        bigint PRIMARY KEY,
    job_id        text COLLATE "C" NOT NULL UNIQUE,
    state         text COLLATE "C" NOT NULL,
    disposition   text COLLATE "C" CHECK (disposition IS NULL OR disposition = {disposition}),
    body          bytea   NOT NULL,
    fingerprint   bytea   NOT NULL,
    metadata      bytea   NOT NULL,
    image_name    text COLLATE "C",
    tenant        text COLLATE "C" NOT NULL DEFAULT '',
    run_no        bigint REFERENCES runs (run_no),
    request_id    text COLLATE "C",
    media         text COLLATE "C",
    files         text COLLATE "C" NOT NULL DEFAULT '[]',
    attempts      integer NOT NULL DEFAULT 0,
    errors        integer NOT NULL DEFAULT 0,
    polls         integer NOT NULL DEFAULT 0,
    error_kind    text COLLATE "C",
    error_message text COLLATE "C",
    submitted_at  double precision,
    accepted_at   double precision,
    finished_at   double precision,
    stored_at     double precision
);

CREATE INDEX jobs_open ON jobs (job_no) WHERE disposition IS NULL;
CREATE INDEX jobs_unsuccessful ON jobs (job_no) WHERE disposition = 'unsuccessful';
CREATE INDEX jobs_image_name ON jobs (image_name) WHERE image_name IS NOT NULL;

CREATE TABLE submissions (
    submission_no bigint PRIMARY KEY,
    job_no        bigint NOT NULL REFERENCES jobs (job_no),
    run_no        bigint REFERENCES runs (run_no),
    sent_at       double precision NOT NULL,
    result        text COLLATE "C",
    request_id    text COLLATE "C" UNIQUE,
    refunded      integer NOT NULL DEFAULT 0,
    answer        bytea
);

CREATE INDEX submissions_in_flight ON submissions (job_no) WHERE result IS NULL;

CREATE TABLE callback_secret (
    singleton integer PRIMARY KEY CHECK (singleton = 1),
    secret    bytea NOT NULL
);

CREATE TABLE checkpoint (
    singleton integer PRIMARY KEY CHECK (singleton = 1),
    data      bytea NOT NULL
);

CREATE TABLE results_mark (
    singleton   integer PRIMARY KEY CHECK (singleton = 1),
    size_bytes  bigint NOT NULL,
    tail_sha256 bytea  NOT NULL
);

CREATE TABLE rate_events (
    event_no bigint PRIMARY KEY,
    data     bytea NOT NULL
);

CREATE TABLE found_limit (
    singleton integer PRIMARY KEY CHECK (singleton = 1),
    data      bytea NOT NULL,
    found_at  double precision NOT NULL
);
