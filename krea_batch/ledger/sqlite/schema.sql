-- The ledger of a run: what was requested, what was charged, what became of it. Version 11.
-- Instants are seconds since 1970 (UTC). States: krea_batch/jobs.py. Transitions: krea_batch/rules/lifecycle.py.
-- The expression of the CHECK is filled in from the table of states when the file is created.

CREATE TABLE jobs (
    job_no        INTEGER PRIMARY KEY,           -- in the order of the first submission
    job_id        TEXT    NOT NULL UNIQUE,
    state         TEXT    NOT NULL,
    disposition   TEXT                           -- succeeded, unsuccessful; NULL: this run or a later one resumes it
        CHECK (disposition IS NULL OR disposition = {disposition}),
    body          BLOB    NOT NULL,              -- JSON, as it is sent, except for signed URLs
    fingerprint   BLOB    NOT NULL,              -- SHA-256 of the body, see wire.fingerprint_of
    metadata      BLOB    NOT NULL,              -- JSON, never sent
    image_name    TEXT,                          -- names the files of images instead of the id; NULL: the id does
    tenant        TEXT    NOT NULL DEFAULT '',   -- for fairness between callers
    run_no        INTEGER REFERENCES runs (run_no), -- of the worker that has the job; free if NULL, or if that has ended
    request_id    TEXT,                          -- of the latest accepted submission
    media         TEXT,                          -- JSON {{"media_urls": […], "media_type": …}} once finished
    files         TEXT    NOT NULL DEFAULT '[]', -- JSON, a list of StoredFile
    attempts      INTEGER NOT NULL DEFAULT 0,    -- submissions
    errors        INTEGER NOT NULL DEFAULT 0,    -- accepted submissions that ended in ERROR
    polls         INTEGER NOT NULL DEFAULT 0,
    error_kind    TEXT,
    error_message TEXT,
    submitted_at  REAL,
    accepted_at   REAL,
    finished_at   REAL,
    stored_at     REAL
) STRICT;

-- The jobs that a new run resumes, however many others have ended. The index is on the disposition, not on the state:
-- each of a job's transitions would then write to both indexes, which costs more than the rest of the transition.
CREATE INDEX jobs_open ON jobs (job_no) WHERE disposition IS NULL;

-- The jobs that ended without an image, which are few.
CREATE INDEX jobs_unsuccessful ON jobs (job_no) WHERE disposition = 'unsuccessful';

-- Finds the jobs that an image may belong to.
CREATE INDEX jobs_image_name ON jobs (image_name) WHERE image_name IS NOT NULL;

-- Every intent to POST, since each may be charged.
CREATE TABLE submissions (
    submission_no INTEGER PRIMARY KEY,
    job_no        INTEGER NOT NULL REFERENCES jobs (job_no),
    run_no        INTEGER REFERENCES runs (run_no),
    sent_at       REAL    NOT NULL,
    result        TEXT,                          -- accepted, refused, server_error, not_sent, ambiguous; NULL: in flight
    request_id    TEXT    UNIQUE,
    refunded      INTEGER NOT NULL DEFAULT 0,    -- 1: the gateway reported ERROR, which is not charged
    answer        BLOB                           -- the beginning of an answer that does not prove the result
) STRICT;

CREATE INDEX submissions_in_flight ON submissions (job_no) WHERE result IS NULL;

-- A run is the work of one process. Several runs may work at the same time: each is a worker of the run directory.
CREATE TABLE runs (
    run_no        INTEGER PRIMARY KEY,
    worker        TEXT NOT NULL DEFAULT '',      -- host and process, for people
    process_lock  TEXT NOT NULL DEFAULT '',      -- shows that it has ended, see krea_batch/storage/process_lock.py
    started_at    REAL NOT NULL,
    ended_at      REAL,
    beat          INTEGER NOT NULL DEFAULT 0,    -- grows with each transaction of the run, so it shows that it is alive
    fenced        INTEGER NOT NULL DEFAULT 0,    -- 1: it was killed or stalled, and may write nothing more
    charged       INTEGER NOT NULL DEFAULT 0,    -- its submissions that are charged, or may be
    server_errors INTEGER NOT NULL DEFAULT 0,    -- its submissions answered with 500 or 503
    reserved      INTEGER NOT NULL DEFAULT 0,    -- charges below the limit that it may still make
    gateway       TEXT NOT NULL,                 -- where the request_ids of this run directory are valid
    version       TEXT NOT NULL,                 -- of krea-batch
    rate_per_s    REAL,                          -- maximum submit rate; NULL: the limit is found
    max_charges   INTEGER,                       -- --max-charges, which retries keep to; NULL: no limit
    count_server_errors INTEGER NOT NULL DEFAULT 0, -- 1: max_charges counts submissions answered with 500 or 503
    expected_jobs INTEGER,                       -- that the run directory will have; NULL: unknown
    results_bytes INTEGER                        -- size of results.jsonl once it is complete and synced
) STRICT;

-- The secret of the callback URLs of all runs of the directory; see krea_batch/gateway/callbacks.py.
CREATE TABLE callback_secret (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    secret    BLOB NOT NULL
) STRICT;

-- How far the job files were read, as far as every job is in the ledger: JSON, see krea_batch/sources/checkpoint.py.
CREATE TABLE checkpoint (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    data      BLOB NOT NULL
) STRICT;

-- The first bytes of results.jsonl, whose rows are all of jobs that this ledger has; see
-- krea_batch/ledger/consistency.py.
CREATE TABLE results_mark (
    singleton   INTEGER PRIMARY KEY CHECK (singleton = 1),
    size_bytes  INTEGER NOT NULL,
    tail_sha256 BLOB    NOT NULL                 -- of the last bytes of them
) STRICT;

-- The limit of the gateway that the last run has found, as long as it was not the configured rate: JSON, see
-- krea_batch/rules/found_limit.py. A run that starts soon after it uses it.
CREATE TABLE found_limit (
    singleton INTEGER PRIMARY KEY CHECK (singleton = 1),
    data      BLOB NOT NULL,
    found_at  REAL NOT NULL
) STRICT;

-- What runs that share the directory tell each other about the submit rate: the latest events, see
-- krea_batch/rules/rate_log.py.
CREATE TABLE rate_events (
    event_no INTEGER PRIMARY KEY,                -- never used again: the latest row is not deleted while runs are live
    data     BLOB NOT NULL
) STRICT;
