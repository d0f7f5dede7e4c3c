// A small AppView: verifies the service token of every call with the TypeScript server package.
// Usage: appview.mjs OWN_DID PLC_URL   Prints its URL when it listens, and answers what it learnt.
import { createServer } from 'node:http'
import { IdResolver } from '@atproto/identity'
import { verifyJwt } from '@atproto/xrpc-server'

const [ownDid, plcUrl] = process.argv.slice(2)
const resolver = new IdResolver({ plcUrl, fetch: globalThis.fetch })

const server = createServer(async (request, response) => {
  const nsid = new URL(request.url, 'http://localhost').pathname.split('/').pop()
  let status = 200
  let body
  try {
    const token = request.headers.authorization.replace(/^Bearer /, '')
    const claims = await verifyJwt(token, ownDid, nsid, async (iss, forceRefresh) => {
      return (await resolver.did.resolveAtprotoData(iss, forceRefresh)).signingKey
    })
    body = { iss: claims.iss, lxm: claims.lxm, path: request.url, cookie: request.headers.cookie ?? null }
  } catch (error) {
    status = 401
    body = { error: error.customErrorName ?? 'Refused', message: String(error) }
  }
  response.writeHead(status, { 'content-type': 'application/json', 'atproto-repo-rev': '3jzfcijpj2z2a' })
  response.end(JSON.stringify(body))
})
server.listen(0, '127.0.0.1', () => console.log(`http://127.0.0.1:${server.address().port}`))
