// spider-rs (Rust, as a native module): its own crawl of each seed's host, robots.txt obeyed, no delay.
//
//     node spider.mjs OUTPUT.jsonl SEED...
//
// The title is found in the raw bytes: with the page as a string, and its own pageTitle(), a page costs twice as much.
import { createHash } from 'node:crypto'
import { appendFileSync, writeFileSync } from 'node:fs'
import spider from '@spider-rs/spider-rs-linux-x64-gnu'

const [output, ...seeds] = process.argv.slice(2)
writeFileSync(output, '')

function keep(error, page) {
  if (error || page.statusCode !== 200) return
  const body = page.rawContent
  const title = /<title[^>]*>([^<]*)/i.exec(body.toString('utf8'))?.[1]
  const digest = createHash('sha256').update(body).digest('hex')
  appendFileSync(output, JSON.stringify({ url: page.url, title, links: page.links, digest }) + '\n')
}

async function crawl(seed) {
  const website = new spider.Website(seed, true).withRespectRobotsTxt(true).withReturnPageLinks(true).withDelay(0)
  await website.build().crawl(keep)
}

await Promise.all(seeds.map(crawl))
