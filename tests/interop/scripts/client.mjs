// A day in the life of a person on this server, through the TypeScript client.
// Usage: client.mjs SERVICE_URL HANDLE   Prints one JSON object; any failure ends with exit code 1.
import assert from 'node:assert/strict'
import { AtpAgent, RichText } from '@atproto/api'

const [service, handle] = process.argv.slice(2)
const PNG = Buffer.from(
  'iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==',
  'base64',
)
const password = 'correct horse battery'
const agent = new AtpAgent({ service })

const server = await agent.com.atproto.server.describeServer()
assert.match(server.data.did, /^did:web:/)

await agent.createAccount({ handle, email: `${handle}@example.com`, password })
const did = agent.assertDid
assert.match(did, /^did:plc:[a-z2-7]{24}$/)

// Log in from nothing, refresh, log in again.
const second = new AtpAgent({ service })
await second.login({ identifier: handle, password })
assert.equal(second.assertDid, did)
await second.resumeSession(second.session)
const session = await second.com.atproto.server.getSession()
assert.equal(session.data.handle, handle)
assert.equal(session.data.active, true)
await assert.rejects(
  new AtpAgent({ service }).login({ identifier: handle, password: 'not the password' }),
  (error) => error.status === 401 && error.error === 'AuthenticationRequired',
)

// A post with a picture.
const upload = await agent.uploadBlob(PNG, { encoding: 'image/png' })
assert.equal(upload.data.blob.mimeType, 'image/png')
assert.equal(upload.data.blob.size, PNG.length)
const text = new RichText({ text: 'Hello from my own ground https://example.com ✓' })
text.detectFacetsWithoutResolution()
const post = await agent.post({
  text: text.text,
  facets: text.facets,
  langs: ['en'],
  embed: { $type: 'app.bsky.embed.images', images: [{ image: upload.data.blob, alt: 'one pixel' }] },
})
const blob = await agent.com.atproto.sync.getBlob({ did, cid: upload.data.blob.ref.toString() })
assert.deepEqual(Buffer.from(blob.data), PNG)
const blobs = await agent.com.atproto.sync.listBlobs({ did })
assert.deepEqual(blobs.data.cids, [upload.data.blob.ref.toString()])

// Reply, like, repost, follow.
const reply = await agent.post({ text: 'and a reply', reply: { root: post, parent: post } })
const like = await agent.like(post.uri, post.cid)
await agent.repost(post.uri, post.cid)
const follow = await agent.follow(did)

// Profile: create, then update through putRecord with swapRecord.
await agent.upsertProfile(() => ({ displayName: 'One', description: 'first' }))
await agent.upsertProfile((old) => ({ ...old, displayName: 'Two', avatar: upload.data.blob }))
const profile = await agent.com.atproto.repo.getRecord({
  repo: did,
  collection: 'app.bsky.actor.profile',
  rkey: 'self',
})
assert.equal(profile.data.value.displayName, 'Two')
assert.equal(profile.data.value.description, 'first')

// Lists of records, with paging.
const first = await agent.com.atproto.repo.listRecords({
  repo: handle,
  collection: 'app.bsky.feed.post',
  limit: 1,
})
assert.equal(first.data.records.length, 1)
assert.equal(first.data.records[0].uri, reply.uri)
const next = await agent.com.atproto.repo.listRecords({
  repo: handle,
  collection: 'app.bsky.feed.post',
  limit: 1,
  cursor: first.data.cursor,
})
assert.equal(next.data.records[0].uri, post.uri)
const repo = await agent.com.atproto.repo.describeRepo({ repo: did })
assert.equal(repo.data.handleIsCorrect, true)
assert.ok(repo.data.collections.includes('app.bsky.graph.follow'))

// A batch, and a batch that must fail as a whole.
await agent.com.atproto.repo.applyWrites({
  repo: did,
  writes: [1, 2, 3].map((number) => ({
    $type: 'com.atproto.repo.applyWrites#create',
    collection: 'app.bsky.feed.post',
    value: { $type: 'app.bsky.feed.post', text: `batch ${number}`, createdAt: new Date().toISOString() },
  })),
})
const head = await agent.com.atproto.sync.getLatestCommit({ did })
await assert.rejects(
  agent.com.atproto.repo.applyWrites({
    repo: did,
    writes: [
      { $type: 'com.atproto.repo.applyWrites#delete', collection: 'app.bsky.feed.post', rkey: reply.uri.split('/').pop() },
      { $type: 'com.atproto.repo.applyWrites#create', collection: 'app.bsky.feed.post', value: { $type: 'app.bsky.feed.post' } },
    ],
  }),
)
assert.equal((await agent.com.atproto.sync.getLatestCommit({ did })).data.cid, head.data.cid)

// Delete things again; an unknown record answers what clients match.
await agent.deleteLike(like.uri)
await agent.deleteFollow(follow.uri)
await agent.deletePost(reply.uri)
await assert.rejects(
  agent.com.atproto.repo.getRecord({ repo: did, collection: 'app.bsky.feed.post', rkey: reply.uri.split('/').pop() }),
  (error) => error.status === 400 && error.error === 'RecordNotFound' && /could not locate record/i.test(error.message),
)

// Preferences.
await agent.app.bsky.actor.putPreferences({
  preferences: [
    { $type: 'app.bsky.actor.defs#adultContentPref', enabled: false },
    { $type: 'app.bsky.actor.defs#savedFeedsPrefV2', items: [{ id: '3kabc', type: 'timeline', value: 'following', pinned: true }] },
  ],
})
const preferences = await agent.app.bsky.actor.getPreferences()
assert.deepEqual(
  preferences.data.preferences.map((item) => item.$type),
  ['app.bsky.actor.defs#adultContentPref', 'app.bsky.actor.defs#savedFeedsPrefV2'],
)

// Identity, and the end of the session.
assert.equal((await agent.com.atproto.identity.resolveHandle({ handle })).data.did, did)
await second.logout()
console.log(JSON.stringify({ did, handle, post: post.uri, head: head.data.cid }))
