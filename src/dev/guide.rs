//! The page that `onair dev` prints: what to paste, in the order in which a first broadcast needs it.

use std::path::Path;

use url::Url;

use super::Files;
use crate::config::NodeConfig;

/// The page. It holds the node's password, which stands in the YAML, but no API secret: `curl` reads that from a file.
pub(super) fn text(data_directory: &Path, files: &Files, api_url: &Url, nodes: &[NodeConfig]) -> String {
    let api = api_url.as_str().trim_end_matches('/');
    let data_directory = data_directory.display();
    let program = std::env::args().next().unwrap_or_else(|| "onair".to_owned());
    let curl = format!("curl -sSK {}", files.api_curlrc.display());
    let json = "-H 'Content-Type: application/json'";
    let (first, node) = (&files.nodes[0], &nodes[0]);
    let (name, node_yaml, yaml) = (&node.name, first.path.display(), &first.yaml);
    let others: Vec<_> = files.nodes[1..].iter().map(|other| other.path.display().to_string()).collect();
    let others =
        if others.is_empty() { String::new() } else { format!("\nThe other nodes' are {}.\n", others.join(", ")) };
    let publishing = publishing(node);
    format!(
        r#"
Onair is running. Ctrl-C stops it and all that it started; keys, history and secrets stay in {data_directory}.

The API is at {api}, its page at {api}/docs, its secret in {data_directory}/credentials.json.

1. A broadcaster and a stream key. The answer holds the key, shown this once.

  {program} keys create --data-dir {data_directory} --broadcaster-name Ada --path live/ada

or, in two steps:

  BROADCASTER=$({curl} {json} -d '{{"display_name": "Ada"}}' {api}/v1/broadcasters | sed 's/.*"id": *"\([^"]*\)".*/\1/')
  {curl} {json} -d '{{"broadcaster_id": "'$BROADCASTER'", "path": "live/ada"}}' {api}/v1/stream-keys

2. MediaMTX, as the node {name}. The same text stands in {node_yaml}:

  mediamtx {node_yaml}

----------------------------------------------------------------------- mediamtx.yml
{yaml}------------------------------------------------------------------------------------
{others}
3. Go on air, with KEY=sk_... from step 1.

{publishing}
4. What is on air.

  {curl} {api}/v1/streams
"#
    )
}

/// One line for each way to publish that the node offers.
fn publishing(node: &NodeConfig) -> String {
    let source = "-re -f lavfi -i testsrc2=size=1280x720:rate=30 -f lavfi -i sine=frequency=440 \
                  -c:v libx264 -preset veryfast -tune zerolatency -pix_fmt yuv420p -g 60 -c:a aac";
    let urls = &node.public_urls;
    let base = |url: &Option<Url>| url.as_ref().map(|url| url.as_str().trim_end_matches('/').to_owned());
    let lines = [
        base(&urls.rtmp).map(|rtmp| format!("OBS, RTMP:  server {rtmp}/live   stream key ada?key=$KEY")),
        base(&urls.webrtc).map(|webrtc| format!("OBS, WHIP:  server {webrtc}/live/ada/whip   bearer token $KEY")),
        base(&urls.rtmp).map(|rtmp| format!("RTMP:  ffmpeg {source} -f flv \"{rtmp}/live/ada?key=$KEY\"")),
        base(&urls.srt).map(|srt| {
            format!("SRT:   ffmpeg {source} -f mpegts \"{srt}?pkt_size=1316&streamid=publish:live/ada:onair:$KEY\"")
        }),
        base(&urls.rtsp).map(|rtsp| {
            let with_key = rtsp.replacen("://", "://onair:$KEY@", 1);
            format!("RTSP:  ffmpeg {source} -rtsp_transport tcp -f rtsp \"{with_key}/live/ada\"")
        }),
    ];
    let lines: Vec<String> = lines.into_iter().flatten().map(|line| format!("  {line}\n")).collect();
    if lines.is_empty() {
        return "  As to any MediaMTX, on the path live/ada: the node is configured without public_urls.\n".to_owned();
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::dev::NodeFiles;

    #[test]
    fn the_page_speaks_of_the_nodes_that_are_configured() {
        let nodes: Vec<NodeConfig> = serde_json::from_str(
            r#"[{"name": "north", "control_url": "http://10.0.0.1:9997", "public_urls": {"rtmp": "rtmp://north:1936"}},
                {"name": "south", "control_url": "http://10.0.0.2:9997"}]"#,
        )
        .unwrap();
        let node = |name: &str| NodeFiles { path: PathBuf::from(format!("d/{name}.yml")), yaml: format!("# {name}\n") };
        let files = Files { api_curlrc: PathBuf::from("d/api.curlrc"), nodes: vec![node("north"), node("south")] };
        let page = text(Path::new("d"), &files, &"http://127.0.0.1:8080".parse().unwrap(), &nodes);
        let told = [
            "as the node north",
            "mediamtx d/north.yml",
            "# north",
            "rtmp://north:1936/live/ada?key=$KEY",
            "d/south.yml",
        ];
        for told in told {
            assert!(page.contains(told), "{told}: {page}");
        }
        assert!(!page.contains("edge-1") && !page.contains("SRT:"), "{page}");
    }
}
