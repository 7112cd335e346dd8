//! The HTTP endpoint of the demo: takes orders, and refuses the first delivery of one of them.

use std::sync::Arc;
use std::sync::Mutex;
use std::thread;

use anyhow::anyhow;
use tiny_http::Response;
use tiny_http::Server;

/// An endpoint on the loopback address.
pub struct Endpoint {
    server: Arc<Server>,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its body.
    pub body: String,
    /// The HTTP status that it was answered with.
    pub status: u16,
}

impl Endpoint {
    /// Starts to listen. The first request whose body contains `refuse_once` is answered with 503.
    pub fn start(refuse_once: &'static str) -> anyhow::Result<Self> {
        let server =
            Arc::new(Server::http("127.0.0.1:0").map_err(|error| anyhow!("failed to listen: {error}"))?);
        let deliveries = Arc::new(Mutex::new(Vec::<Delivery>::new()));
        thread::spawn({
            let (server, deliveries) = (server.clone(), deliveries.clone());
            move || {
                for mut request in server.incoming_requests() {
                    let mut body = String::new();
                    let _ = request.as_reader().read_to_string(&mut body);
                    let mut deliveries = deliveries.lock().expect("no holder of the lock panics");
                    let seen = deliveries.iter().any(|delivery| delivery.body.contains(refuse_once));
                    let status = if body.contains(refuse_once) && !seen { 503 } else { 200 };
                    deliveries.push(Delivery { body, status });
                    let _ = request.respond(Response::empty(status));
                }
            }
        });
        Ok(Self { server, deliveries })
    }

    /// The endpoint's address.
    pub fn url(&self) -> String {
        format!("http://{}/orders", self.server.server_addr())
    }

    /// What came so far.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().expect("no holder of the lock panics").clone()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.unblock();
    }
}
