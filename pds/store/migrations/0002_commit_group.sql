-- What several writers of one database need. SQLite has one writer and leaves the table empty.

-- scratch: the group that each writer committed last. Written inside the group, so that a writer
-- which lost its connection during a COMMIT can see what became of it.
CREATE TABLE commit_group (
  node {key} PRIMARY KEY,
  group_id {blob} NOT NULL,
  begun_at {int} NOT NULL
) {rowless};
