// Read the firehose with the TypeScript sync package, every commit verified (signature against the
// resolved DID document, proofs of every operation).
// Usage: firehose.mjs WS_URL PLC_URL CURSOR LAST_SEQ
// Prints one JSON line an event, and ends when an event with seq >= LAST_SEQ was handled.
import { IdResolver, MemoryCache } from '@atproto/identity'
import { Firehose } from '@atproto/sync'

const [service, plcUrl, cursor, last] = process.argv.slice(2)
// The package's own fetch refuses http and loopback, where the directory of a test is.
const idResolver = new IdResolver({ plcUrl, didCache: new MemoryCache(), fetch: globalThis.fetch })
const firehose = new Firehose({
  service,
  idResolver,
  getCursor: () => Number(cursor),
  unauthenticatedHandles: true,
  handleEvent: (event) => {
    const { seq, event: kind, did } = event
    const out = { seq, kind, did }
    if (event.uri) Object.assign(out, { uri: event.uri.toString(), cid: event.cid?.toString(), rev: event.rev })
    if (kind === 'account') Object.assign(out, { active: event.active })
    console.log(JSON.stringify(out))
    if (seq >= Number(last)) setTimeout(() => process.exit(0), 200)
  },
  onError: (error) => {
    console.error(String(error), error.cause ? String(error.cause) : '')
    process.exit(1)
  },
})
setTimeout(() => {
  console.error('the last event did not arrive')
  process.exit(2)
}, 60_000).unref()
firehose.start()
