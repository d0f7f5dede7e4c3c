-- What the life of an account, its moderation, shared limits and scheduled work need.

-- durable: codes sent by mail, one per account and purpose; only the digest is kept.
CREATE TABLE mail_token (
  aid {int} NOT NULL,
  purpose {key} NOT NULL,
  digest {blob} NOT NULL,
  attempts {int} NOT NULL DEFAULT 0,
  created_at {int} NOT NULL,
  PRIMARY KEY (aid, purpose)
) {rowless};
CREATE INDEX mail_token_created_at ON mail_token (created_at);
CREATE INDEX mail_token_digest ON mail_token (digest);

-- durable: signing keys handed out before their account exists, the secret sealed.
CREATE TABLE reserved_key (
  did_key {key} PRIMARY KEY,
  did {key},
  secret {blob} NOT NULL,
  created_at {int} NOT NULL
);
CREATE UNIQUE INDEX reserved_key_did ON reserved_key (did);
CREATE INDEX reserved_key_created_at ON reserved_key (created_at);

-- durable: records that were taken down, by path, whether or not the record is there.
CREATE TABLE record_takedown (
  aid {int} NOT NULL,
  path {key} NOT NULL,
  cid {blob} NOT NULL,
  takedown_ref {key} NOT NULL,
  taken_down_at {int} NOT NULL,
  PRIMARY KEY (aid, path)
) {rowless};

-- durable: choices of an account that are no preference of a client, such as its AppView.
CREATE TABLE account_choice (
  aid {int} NOT NULL,
  name {key} NOT NULL,
  value {blob} NOT NULL,
  PRIMARY KEY (aid, name)
) {rowless};

-- durable: what operators and moderators did. `before` and `after` are JSON.
CREATE TABLE audit (
  audit_id {int} PRIMARY KEY,
  at {int} NOT NULL,
  actor {key} NOT NULL,
  act {key} NOT NULL,
  subject {key} NOT NULL,
  before {blob},
  after {blob},
  note {key}
);
CREATE INDEX audit_subject ON audit (subject, audit_id);

-- scratch: requests counted in a window, by all nodes together.
CREATE TABLE rate_count (
  limit_name {key} NOT NULL,
  subject {blob} NOT NULL,
  window_start {int} NOT NULL,
  points {int} NOT NULL,
  expires_at {int} NOT NULL,
  PRIMARY KEY (limit_name, subject, window_start)
) {rowless};
CREATE INDEX rate_count_expires_at ON rate_count (expires_at);

-- scratch: tokens that work once and were used, until they would have expired anyhow.
CREATE TABLE used_token (
  digest {blob} PRIMARY KEY,
  expires_at {int} NOT NULL
) {rowless};
CREATE INDEX used_token_expires_at ON used_token (expires_at);

-- scratch: scheduled work, one row per job: who does it now, and what came of it.
CREATE TABLE job (
  name {key} PRIMARY KEY,
  period_us {int} NOT NULL,
  next_at {int} NOT NULL,
  lease_node {key},
  lease_until {int},
  started_at {int},
  finished_at {int},
  succeeded_at {int},
  result {key},
  failures {int} NOT NULL DEFAULT 0
) {rowless};

-- scratch: lexicons of others, or that there is none.
CREATE TABLE lexicon_cache (
  nsid {key} PRIMARY KEY,
  uri {key},
  cid {key},
  document {blob},
  outcome {key} NOT NULL,
  fetched_at {int} NOT NULL
) {rowless};

CREATE INDEX account_delete_after ON account (delete_after) WHERE delete_after IS NOT NULL;

CREATE INDEX invite_code_for_account ON invite_code (for_account, code);
CREATE INDEX invite_use_aid ON invite_use (aid);

-- scratch: what this database is in a conversion to or from another; one row (id 1) or none.
CREATE TABLE conversion (
  id {int} PRIMARY KEY,
  mark {blob} NOT NULL
);
CREATE INDEX blob_hidden ON blob (aid, takedown_ref) WHERE takedown_ref IS NOT NULL;

-- durable: accounts on their way in or out, one row per move. `state` is JSON; what opens doors at
-- the other host is in `secrets`, sealed, and gone when the move is over.
CREATE TABLE move (
  move_id {int} PRIMARY KEY,
  did {key} NOT NULL,
  direction {key} NOT NULL,
  step {key} NOT NULL,
  status {key} NOT NULL,
  state {blob} NOT NULL,
  secrets {blob},
  lease_node {key},
  lease_until {int},
  switched_at {int},
  created_at {int} NOT NULL,
  updated_at {int} NOT NULL,
  finished_at {int}
);
CREATE UNIQUE INDEX move_open ON move (did) WHERE finished_at IS NULL;
CREATE INDEX move_did ON move (did, move_id);
CREATE INDEX move_status ON move (status, move_id);
CREATE INDEX move_switched_at ON move (switched_at) WHERE switched_at IS NOT NULL;

-- durable: how far the PLC log of each account was read, times in unix microseconds.
CREATE TABLE plc_watch (
  aid {int} PRIMARY KEY,
  last_cid {key} NOT NULL,
  seen_at {int} NOT NULL,
  looked_at {int} NOT NULL
);
CREATE INDEX plc_watch_looked_at ON plc_watch (looked_at);

-- durable: operations on identities of accounts that were passed on for their owners, or that came
-- from elsewhere; `told_at` is set once people were told.
CREATE TABLE plc_operation (
  aid {int} NOT NULL,
  cid {key} NOT NULL,
  origin {key} NOT NULL,
  signer {key},
  accepted_at {int},
  noted_at {int} NOT NULL,
  told_at {int},
  PRIMARY KEY (aid, cid)
) {rowless};
CREATE INDEX plc_operation_untold ON plc_operation (noted_at) WHERE told_at IS NULL;
