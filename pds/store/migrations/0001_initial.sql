-- The first schema. Common subset of SQLite and PostgreSQL; {blob}, {int}, {key} and {rowless} are
-- filled in by the engine (bytes; 64-bit integer; text compared by bytes; WITHOUT ROWID or nothing).
-- Instants are unix microseconds. Every table has a declared primary key; ids come from `counter`.

-- durable: counters for ids (account, repo, key ...).
CREATE TABLE counter (
  name {key} PRIMARY KEY,
  value {int} NOT NULL
) {rowless};

-- durable: the one row that numbers events. last_seq never goes backwards.
CREATE TABLE seq (
  id {int} PRIMARY KEY,
  last_seq {int} NOT NULL
);
INSERT INTO seq (id, last_seq) VALUES (1, 0);

-- durable: accounts. Status is derived: takedown_ref, then suspended_at, then deactivated_at.
CREATE TABLE account (
  aid {int} PRIMARY KEY,
  did {key} NOT NULL,
  handle {key},
  email {key},
  email_confirmed_at {int},
  password_hash {key},
  created_at {int} NOT NULL,
  repo_id {int},
  key_id {int},
  takedown_ref {key},
  suspended_at {int},
  deactivated_at {int},
  delete_after {int},
  invites_disabled {int} NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX account_did ON account (did);
CREATE UNIQUE INDEX account_handle ON account (handle);
CREATE UNIQUE INDEX account_email ON account (email);

-- durable: one wrapped data key per account; deleting it erases the account's secrets.
CREATE TABLE data_key (
  data_key_id {int} PRIMARY KEY,
  aid {int} NOT NULL,
  wrapped {blob} NOT NULL,
  created_at {int} NOT NULL
);
CREATE INDEX data_key_aid ON data_key (aid);

-- durable: repo signing keys, the secret encrypted under the account's data key.
CREATE TABLE signing_key (
  key_id {int} PRIMARY KEY,
  aid {int} NOT NULL,
  data_key_id {int} NOT NULL,
  did_key {key} NOT NULL,
  secret {blob} NOT NULL,
  created_at {int} NOT NULL
);
CREATE INDEX signing_key_aid ON signing_key (aid);

-- durable: one row per refresh token of a session chain.
CREATE TABLE session (
  token_id {key} PRIMARY KEY,
  session_id {key} NOT NULL,
  aid {int} NOT NULL,
  scope {key} NOT NULL,
  app_password_id {int},
  next_token_id {key},
  created_at {int} NOT NULL,
  expires_at {int} NOT NULL
) {rowless};
CREATE INDEX session_aid ON session (aid);
CREATE INDEX session_chain ON session (session_id);
CREATE INDEX session_expires_at ON session (expires_at);

-- durable: app passwords (only the hash).
CREATE TABLE app_password (
  app_password_id {int} PRIMARY KEY,
  aid {int} NOT NULL,
  name {key} NOT NULL,
  hash {blob} NOT NULL,
  privileged {int} NOT NULL,
  created_at {int} NOT NULL
);
CREATE UNIQUE INDEX app_password_name ON app_password (aid, name);

-- durable: private preferences, JSON text, in the order the client gave.
CREATE TABLE preference (
  aid {int} NOT NULL,
  position {int} NOT NULL,
  type {key} NOT NULL,
  value {blob} NOT NULL,
  PRIMARY KEY (aid, position)
);

-- durable: invite codes.
CREATE TABLE invite_code (
  code {key} PRIMARY KEY,
  use_count {int} NOT NULL,
  disabled {int} NOT NULL DEFAULT 0,
  for_account {key} NOT NULL,
  created_by {key} NOT NULL,
  created_at {int} NOT NULL
) {rowless};
-- durable: who used an invite code.
CREATE TABLE invite_use (
  code {key} NOT NULL,
  aid {int} NOT NULL,
  used_at {int} NOT NULL,
  PRIMARY KEY (code, aid)
) {rowless};

-- durable: acts that touch our database and another system, written before the outer call.
CREATE TABLE journal (
  journal_id {int} PRIMARY KEY,
  kind {key} NOT NULL,
  subject {key} NOT NULL,
  state {blob} NOT NULL,
  created_at {int} NOT NULL,
  updated_at {int} NOT NULL,
  attempts {int} NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX journal_subject ON journal (kind, subject);

-- durable: repos. account.repo_id names the live one; others are being built or deleted.
CREATE TABLE repo (
  repo_id {int} PRIMARY KEY,
  aid {int} NOT NULL,
  commit_cid {blob} NOT NULL,
  rev {key} NOT NULL,
  data_cid {blob} NOT NULL,
  commit_block {blob} NOT NULL,
  record_count {int} NOT NULL,
  node_count {int} NOT NULL,
  updated_at {int} NOT NULL
);
CREATE INDEX repo_aid ON repo (aid);

-- durable: records by path ("collection/rkey"), in byte order.
CREATE TABLE record (
  repo_id {int} NOT NULL,
  path {key} NOT NULL,
  cid {blob} NOT NULL,
  rev {key} NOT NULL,
  bytes {blob} NOT NULL,
  PRIMARY KEY (repo_id, path)
);
CREATE INDEX record_cid ON record (repo_id, cid);

-- durable: nodes of the live tree only.
CREATE TABLE node (
  repo_id {int} NOT NULL,
  cid {blob} NOT NULL,
  rev {key} NOT NULL,
  bytes {blob} NOT NULL,
  PRIMARY KEY (repo_id, cid)
);

-- durable: who a like, repost, follow or block points at, to replace duplicates.
CREATE TABLE backlink (
  repo_id {int} NOT NULL,
  collection {key} NOT NULL,
  subject {key} NOT NULL,
  path {key} NOT NULL,
  PRIMARY KEY (repo_id, collection, subject, path)
) {rowless};
CREATE INDEX backlink_path ON backlink (repo_id, path);

-- durable: blobs that an account holds. stored_at is null while nothing refers to it (temporary).
CREATE TABLE blob (
  aid {int} NOT NULL,
  cid {blob} NOT NULL,
  mime_type {key} NOT NULL,
  size {int} NOT NULL,
  created_at {int} NOT NULL,
  stored_at {int},
  takedown_ref {key},
  PRIMARY KEY (aid, cid)
) {rowless};
CREATE INDEX blob_temporary ON blob (created_at) WHERE stored_at IS NULL;

-- durable: which record refers to which blob (whether or not the bytes are here).
CREATE TABLE blob_ref (
  repo_id {int} NOT NULL,
  cid {blob} NOT NULL,
  path {key} NOT NULL,
  rev {key} NOT NULL,
  PRIMARY KEY (repo_id, cid, path)
) {rowless};
CREATE INDEX blob_ref_path ON blob_ref (repo_id, path);

-- durable: blob bytes whose row is gone, to be deleted from the blob store.
CREATE TABLE blob_garbage (
  aid {int} NOT NULL,
  cid {blob} NOT NULL,
  queued_at {int} NOT NULL,
  PRIMARY KEY (aid, cid)
) {rowless};

-- durable: repo generations to be deleted in small jobs.
CREATE TABLE repo_garbage (
  repo_id {int} PRIMARY KEY,
  queued_at {int} NOT NULL
);

-- durable: the firehose, frames as sent.
CREATE TABLE event (
  seq {int} PRIMARY KEY,
  aid {int} NOT NULL,
  kind {key} NOT NULL,
  at {int} NOT NULL,
  frame {blob} NOT NULL
);
CREATE INDEX event_aid ON event (aid, seq);

-- scratch: resolved DID documents and handles, kept over restarts.
CREATE TABLE identity_cache (
  subject {key} PRIMARY KEY,
  value {blob} NOT NULL,
  fetched_at {int} NOT NULL
) {rowless};

-- durable: single facts of this host (clock confirmation, host name announced ...).
CREATE TABLE fact (
  name {key} PRIMARY KEY,
  value {blob} NOT NULL
) {rowless};
