// Crawlee's CheerioCrawler: links by Cheerio, dedup by its own queue in memory, robots.txt obeyed, no delay, no retries.
//
//     node crawlee.mjs OUTPUT.jsonl SEED...
//
// It limits requests for all hosts together, so it has four times as many at once as there are hosts.
import { createHash } from 'node:crypto'
import { appendFileSync, writeFileSync } from 'node:fs'
import { CheerioCrawler, Configuration, log } from '@crawlee/cheerio'

const [output, ...seeds] = process.argv.slice(2)
writeFileSync(output, '')
log.setLevel(log.LEVELS.OFF)

function absolute(hrefs, base) {
  const links = new Set()
  for (const href of hrefs) {
    if (URL.canParse(href, base)) links.add(new URL(href, base).href.split('#', 1)[0])
  }
  return [...links]
}

async function keep({ request, $, body }) {
  const url = request.loadedUrl
  const hrefs = $('a[href], area[href]').map((_, element) => element.attribs.href).get()
  const links = absolute(hrefs, url)
  const digest = createHash('sha256').update(body).digest('hex')
  appendFileSync(output, JSON.stringify({ url, title: $('title').first().text(), links, digest }) + '\n')
  const origin = new URL(url).origin + '/'
  await crawler.addRequests(links.filter((link) => link.startsWith(origin) && !known.has(link) && known.add(link)))
}

const known = new Set(seeds)
const concurrency = 4 * seeds.length
const options = {
  minConcurrency: concurrency,
  maxConcurrency: concurrency,
  maxRequestRetries: 0,
  useSessionPool: false,
  persistCookiesPerSession: false,
  respectRobotsTxtFile: true,
  requestHandler: keep,
}
const crawler = new CheerioCrawler(options, new Configuration({ persistStorage: false }))
await crawler.run(seeds)
