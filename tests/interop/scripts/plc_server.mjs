// The real PLC directory server with its in-memory database, on loopback. Prints its URL.
import plc from '@did-plc/server'

process.env.LOG_ENABLED = 'false'
const { Database, PlcServer } = plc
const server = PlcServer.create({ db: Database.mock() })
const http = server.app.listen(0, '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${http.address().port}`)
})
