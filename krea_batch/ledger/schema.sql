-- The ledger of a run: what was asked, what was paid, what became of it. Version 3.
-- Instants are seconds since 1970 (UTC). States and what may follow them: rules/lifecycle.py.

CREATE TABLE jobs (
    n             INTEGER PRIMARY KEY,           -- in the order of the first submit
    id            TEXT    NOT NULL UNIQUE,
    state         TEXT    NOT NULL,
    over          TEXT                           -- 'well', 'in vain'; NULL: this run or a later one goes on with it
        CHECK (over IS NULL OR over = CASE
            WHEN state = 'succeeded' THEN 'well' WHEN state IN ('failed', 'rejected', 'cancelled') THEN 'in vain' END),
    body          BLOB    NOT NULL,              -- JSON, exactly as it is sent
    fingerprint   BLOB    NOT NULL,              -- SHA-256 of the body
    metadata      BLOB    NOT NULL,              -- JSON, never sent
    tenant        TEXT    NOT NULL DEFAULT '',   -- whose it is, where several take turns
    request_id    TEXT,                          -- of the latest accepted POST
    media         TEXT,                          -- JSON {"media_urls": […], "media_type": …} once finished
    files         TEXT    NOT NULL DEFAULT '[]', -- JSON, the rows of StoredFile
    attempts      INTEGER NOT NULL DEFAULT 0,    -- POSTs that were about to leave
    errors        INTEGER NOT NULL DEFAULT 0,    -- accepted POSTs that came to ERROR
    polls         INTEGER NOT NULL DEFAULT 0,
    error_kind    TEXT,
    error_message TEXT,
    submitted_at  REAL,
    accepted_at   REAL,
    finished_at   REAL,
    stored_at     REAL
) STRICT;

-- What a new run has to look at, and no more, however many jobs are over. Not by the states themselves: each of a
-- job's steps would then write to both indexes, which costs more than all the rest of the step.
CREATE INDEX jobs_open ON jobs (n) WHERE over IS NULL;

-- What was paid or refused in vain, which is little.
CREATE INDEX jobs_in_vain ON jobs (n) WHERE over = 'in vain';

-- Every POST that was about to leave, since each may cost money.
CREATE TABLE posts (
    n          INTEGER PRIMARY KEY,
    job        INTEGER NOT NULL REFERENCES jobs (n),
    sent_at    REAL    NOT NULL,
    came_to    TEXT,                             -- NULL: in the air; accepted, refused, not_sent, unclear
    request_id TEXT    UNIQUE,
    refunded   INTEGER NOT NULL DEFAULT 0        -- 1: the gateway said ERROR, which is not charged
) STRICT;

CREATE INDEX posts_in_air ON posts (job) WHERE came_to IS NULL;

CREATE TABLE runs (
    n          INTEGER PRIMARY KEY,
    started_at REAL NOT NULL,
    ended_at   REAL,
    gateway    TEXT NOT NULL,                    -- where the request_ids of this folder mean something
    version    TEXT NOT NULL,                    -- of krea-batch
    per_s      REAL,                             -- most submits a second; NULL: the limit was to be found
    jobs       INTEGER,                          -- that the folder is to come to; NULL: not told
    results_bytes INTEGER                        -- size of results.jsonl, once it holds all and is synced
) STRICT;

-- What makes the addresses for callbacks unguessable, for all runs of the folder; see gateway/callbacks.py.
CREATE TABLE callbacks (
    only   INTEGER PRIMARY KEY CHECK (only = 1),
    secret BLOB NOT NULL
) STRICT;

-- How far job files have been read of which every job is on record: JSON, see sources/bookmark.py.
CREATE TABLE bookmark (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    what BLOB NOT NULL
) STRICT;
