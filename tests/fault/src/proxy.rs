//! A small TCP proxy between a client and the server: it forwards, holds, delays, drops and cuts.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::watch;

/// What the proxy does with what comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Forwards.
    Open,
    /// Forwards each piece after a while.
    Slow(Duration),
    /// A partition: forwards nothing and closes nothing; connections of this time are dead afterwards.
    Silent,
    /// Takes no new connections.
    Refusing,
}

#[derive(Clone, Copy)]
struct Order {
    mode: Mode,
    /// Grows when all connections are to be cut.
    cuts: u64,
}

/// A proxy that listens on the loopback address.
pub struct Proxy {
    port: u16,
    orders: watch::Sender<Order>,
}

impl Proxy {
    /// Starts a proxy to whatever port `upstream` says when a connection comes.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(upstream: Arc<AtomicU16>) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        let (orders, watch) = watch::channel(Order { mode: Mode::Open, cuts: 0 });
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let orders = watch.clone();
                if orders.borrow().mode == Mode::Refusing {
                    continue;
                }
                let server = SocketAddr::from(([127, 0, 0, 1], upstream.load(Relaxed)));
                tokio::spawn(async move {
                    // A connection that cannot be made is closed, as a server that is down would do.
                    let _ = carry(client, server, orders).await;
                });
            }
        });
        Ok(Self { port, orders })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Changes what it does.
    pub fn set(&self, mode: Mode) {
        self.orders.send_modify(|order| order.mode = mode);
    }

    /// Ends all connections.
    pub fn cut(&self) {
        self.orders.send_modify(|order| order.cuts += 1);
    }
}

async fn carry(client: TcpStream, server: SocketAddr, orders: watch::Receiver<Order>) -> std::io::Result<()> {
    let server = TcpStream::connect(server).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        () = pump(client_in, server_out, orders.clone()) => {}
        () = pump(server_in, client_out, orders.clone()) => {}
        () = cut(orders) => {}
    }
    Ok(())
}

/// Forwards until one side ends; for ever when the connection fell into a partition, until it is cut.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, orders: watch::Receiver<Order>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(count @ 1..) = from.read(&mut buffer).await else {
            if orders.borrow().mode == Mode::Silent {
                // Nobody hears of the end either.
                return std::future::pending().await;
            }
            return;
        };
        let mode = orders.borrow().mode;
        match mode {
            Mode::Open | Mode::Refusing => {}
            Mode::Slow(delay) => tokio::time::sleep(delay).await,
            Mode::Silent => return std::future::pending().await,
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn cut(mut orders: watch::Receiver<Order>) {
    let cuts = orders.borrow().cuts;
    while orders.changed().await.is_ok() {
        if orders.borrow().cuts != cuts {
            return;
        }
    }
    // The proxy is gone.
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> std::io::Result<u16> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        Ok(port)
    }

    async fn ask(stream: &mut TcpStream) -> std::io::Result<bool> {
        stream.write_all(b"x").await?;
        let mut answer = [0];
        let read = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut answer)).await;
        Ok(matches!(read, Ok(Ok(1))))
    }

    #[tokio::test]
    async fn it_forwards_and_a_partition_or_a_cut_ends_that() -> anyhow::Result<()> {
        let proxy = Proxy::start(Arc::new(AtomicU16::new(echo().await?))).await?;
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
        assert!(ask(&mut stream).await?);
        proxy.set(Mode::Silent);
        assert!(!ask(&mut stream).await?);
        proxy.set(Mode::Open);
        assert!(!ask(&mut stream).await?, "what fell into a partition stays dead");
        let mut second = TcpStream::connect(("127.0.0.1", proxy.port())).await?;
        assert!(ask(&mut second).await?);
        proxy.cut();
        let mut rest = Vec::new();
        assert_eq!(second.read_to_end(&mut rest).await?, 0);
        Ok(())
    }
}
